"""Who is compared: every registered method as its recipe ships, peft's own, BitFit, a linear probe, full fine-tuning.

All have the same backbone, the same linear head on the same states, and the rest of the recipe of the kind of task.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import peft
import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.prompt_tuning import PromptTuningInit
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from attentune.anatomy import stacks_of
from attentune.comparison.plain import Plain, is_pooler
from attentune.comparison.plan import Conditions
from attentune.errors import ConfigError, UnsupportedError
from attentune.methods import METHODS
from attentune.model import TaskModel
from attentune.tasks import Task
from attentune.training.adapted import adapt, beside, finish, head_of, longest
from attentune.training.recipe import Recipe, shipped_recipe


@dataclass(frozen=True)
class Tuned:
    """A contender on its backbone: what is trained, and what of it is kept."""

    model: nn.Module
    max_length: int
    """Most tokens of a text, beside prompt rows."""
    peft_config: dict[str, Any] | None
    kept: Callable[[], dict[str, Tensor]]
    """The tensors that serving needs besides the backbone, after training; it may drop what served training only."""


@dataclass(frozen=True)
class Contender:
    """One way of adapting a backbone."""

    name: str
    shown: str
    """For people."""
    rate: float | None
    """The learning rate that is tried first; None: of the recipe."""
    options: Mapping[str, Any]
    """What it is made of; a method's own are in its recipe."""
    trained: bool = True
    """False: fitted in closed form or to convergence, without learning rate and seed."""

    def rates(self, recipe: Recipe, count: int) -> tuple[float | None, ...]:
        """So many learning rates, half a decade apart around the most likely, which is the first."""
        return (
            grid(recipe.training.learning_rate if self.rate is None else self.rate, count) if self.trained else (None,)
        )


def grid(centre: float, count: int) -> tuple[float, ...]:
    """c, 3c, c/3, 9c, c/9, ... rounded to two digits."""
    powers = sorted(range(-(count // 2), count // 2 + 1), key=lambda power: (abs(power), -power))[:count]
    return tuple(float(f"{centre * 3.0**power:.2g}") for power in powers)


OTHERS = {
    contender.name: contender
    for contender in (
        Contender("lora", "LoRA", 2e-3, {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1}),
        Contender("ia3", "IA3", 1e-2, {}),
        Contender("prompt_tuning", "prompt tuning", 3e-2, {"num_virtual_tokens": 8}),
        Contender("prefix_tuning", "prefix tuning", 1e-2, {"num_virtual_tokens": 8}),
        Contender("bitfit", "BitFit", 3e-3, {}),
        Contender("probe", "linear probe", None, {}, trained=False),
        Contender("full", "full fine-tuning", 1e-4, {}),
    )
}
"""The contenders that attentune does not adapt itself."""


def names() -> tuple[str, ...]:
    """Every contender, those that are registered later too."""
    return (*METHODS, *OTHERS)


def contender(name: str) -> Contender:
    """A contender by name.

    Raises:
        ConfigError: there is none.
    """
    if name in OTHERS:
        return OTHERS[name]
    if name not in METHODS:
        raise ConfigError(f"no contender {name!r}; there are {', '.join(names())}")
    title, colon, _ = (METHODS[name].config.__doc__ or "").partition(":")
    return Contender(name, title if colon else name, None, {})


def recipe_for(name: str, kind: str, pair: bool, conditions: Conditions) -> Recipe:
    """The shipped recipe of a contender (of pasta for those without one) under the conditions.

    Every contender takes the same steps: none ends early, whatever its recipe says.
    """
    recipe = shipped_recipe(kind, name if name in METHODS else "pasta", pair)
    changes = {
        "training.epochs": float(conditions.epochs),
        "training.patience": 0,
        "training.precision": conditions.precision,
        "training.batch_size": conditions.batch_size,
        "training.attention_dropout": conditions.attention_dropout,
        "task.max_length": conditions.max_length,
    }
    return recipe.override({key: value for key, value in changes.items() if value is not None})


def options_of(name: str, recipe: Recipe) -> dict[str, Any]:
    """What a contender is made of, as plain values: with the conditions, all that a result depends on."""
    tables = recipe.tables()
    shared = {key: value for key, value in tables["training"].items() if key not in ("learning_rate", "seed")}
    own = tables["method"] if name in METHODS else dict(contender(name).options)
    return {"own": own, "task": tables["task"], "training": shared}


def build(name: str, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, recipe: Recipe) -> Tuned:
    """A fresh contender on `base`, which it changes.

    Raises:
        UnsupportedError: it has no form on this backbone.
    """
    if name in METHODS:
        return _own(base, tokenizer, task, recipe)
    base.requires_grad_(False)
    backbone, prompt = TaskModel(base).backbone, int(contender(name).options.get("num_virtual_tokens", 0))
    limit = beside(prompt, recipe.task.max_length, backbone.config, tokenizer)
    config = peft_config(name, backbone)
    if config is not None:
        backbone = _with_peft(backbone, config)
    elif name == "full":
        backbone.float().requires_grad_(True)
    elif name == "bitfit":
        _free_biases(backbone.float())
    plain = Plain(backbone, head_of(task, tokenizer, recipe.task), prompt)
    given = None if config is None else {key: _plain_value(value) for key, value in config.to_dict().items()}
    return Tuned(plain, limit, given, lambda: _kept(plain))


def peft_config(name: str, backbone: Any) -> Any:
    """The configuration of one of peft's methods; None for what is none of them."""
    given: dict[str, Any] = {"task_type": "FEATURE_EXTRACTION", **contender(name).options}
    if name == "lora":
        _, _, anatomy = stacks_of(backbone)[0]
        targets = sorted({anatomy.places[site].path for site in ("query", "value")})
        return peft.LoraConfig(**given, target_modules=targets)
    if name == "ia3":
        return peft.IA3Config(**given)
    if name == "prompt_tuning":
        return peft.PromptTuningConfig(**given, prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB)
    return peft.PrefixTuningConfig(**given) if name == "prefix_tuning" else None


def _own(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, recipe: Recipe) -> Tuned:
    model = adapt(base, tokenizer, task, recipe)

    def kept() -> dict[str, Tensor]:
        finish(model, "")
        return get_peft_model_state_dict(model)

    method: Any = model.peft_config["default"]
    config = {key: _plain_value(value) for key, value in method.to_dict().items()}
    return Tuned(model, longest(method, base.config, task, recipe.task, tokenizer), config, kept)


def _with_peft(backbone: PreTrainedModel, config: Any) -> Any:
    try:
        return peft.get_peft_model(backbone, config)
    except (ValueError, AttributeError, TypeError, NotImplementedError) as error:
        kind = str(config.peft_type.value).lower()
        raise UnsupportedError(f"peft has no {kind} for {backbone.config.model_type}: {error}") from error


def _free_biases(backbone: nn.Module) -> None:
    """BitFit trains every bias of the backbone and nothing else.

    Ben Zaken et al., BitFit, ACL 2022, section 3.
    """
    biases = [p for name, p in backbone.named_parameters() if name.split(".")[-1] == "bias" and not is_pooler(name)]
    if not biases:
        raise UnsupportedError("BitFit trains biases, and this backbone has none")
    for p in biases:
        p.requires_grad_(True)


def _kept(plain: Plain) -> dict[str, Tensor]:
    """Adapter and head of peft's methods; what was trained of the others. Tensors that share memory count once."""
    if isinstance(plain.body.backbone, PeftModel):
        adapter = get_peft_model_state_dict(plain.body.backbone)
    else:
        adapter = {name: p for name, p in plain.body.named_parameters() if p.requires_grad}
    found = {**adapter, **{f"heads.{name}": p for name, p in plain.heads.named_parameters()}}
    once = {p.data_ptr(): name for name, p in reversed(list(found.items()))}
    return {name: p.detach() for name, p in found.items() if once[p.data_ptr()] == name}


def _plain_value(value: Any) -> Any:
    if isinstance(value, set | frozenset | tuple | list):
        return sorted(map(_plain_value, value), key=str)
    if isinstance(value, dict):
        return {str(key): _plain_value(item) for key, item in value.items()}
    if isinstance(value, torch.dtype):
        return str(value)
    value = getattr(value, "value", value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)
