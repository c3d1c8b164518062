"""The configs: a line of help for every option, JSON there and back, one sentence for what cannot be meant."""

from dataclasses import asdict, fields, replace

import pytest
from peft import PeftConfig

from attentune import METHODS, HeadConfig, MethodConfig
from attentune.errors import ConfigError
from attentune.methods import BUILT_IN

CONFIGS = {method.name: method.config for method in BUILT_IN}
EVERY = {  # no option at its default
    "tiny_attention": {"width": 4, "heads": 2, "structure": "s1", "experts": 3, "dropout": 0.0},
    "pasta": {"slots": 2, "special_ids": [7, 9], "dropout": 0.5},
    "prefix_propagation": {
        "length": 3,
        "mode": "combine",
        "dropout": 0.2,
        "pool": "prefix",
        "mlp": 16,
        "scale_rows": True,
        "kernel": "rbf",
        "kernel_scale": 0.5,
        "lengthscale": 2.0,
        "paper_exact": True,
        "heads": 4,
        "query_scale": 0.3,
    },
    "attempt": {
        "length": 5,
        "sources": 2,
        "attention": "linear",
        "bottleneck": 7,
        "temperature": 3.0,
        "ignore_target": True,
        "tasks": 3,
        "task": 1,
        "train_sources": True,
        "paper_exact": True,
        "source_names": ["nli", "tone"],
        "source_hashes": ["0a", "1b"],
    },
    "kernel_mix": {
        "parts": "qv",
        "q_rank": 2,
        "v_rank": 3,
        "q_shared_rank": 1,
        "v_shared_rank": 5,
        "v_base": "X",
        "alpha": 4.0,
        "biases": False,
        "dropout": 0.3,
    },
}
SHARED = {
    "layers_to_transform": [0, 2],
    "modules_to_save": ["classifier"],
    "head": HeadConfig(kind="token", num_labels=5, pooling="mean", dropout=0.2),
    "init_weights": "paper",
}
NEEDS = {
    ("attempt", "task"): {"tasks": 3},
    ("attempt", "source_names"): {"sources": 2},
    ("attempt", "source_hashes"): {"sources": 2},
    ("tiny_attention", "heads"): {"width": 4},
}
"""Options that can be meant only beside others."""
WRONG = [
    ("tiny_attention", {"structure": "m2"}, "structure is one of m0, m1, s0, s1, seq, double_seq, not 'm2'"),
    ("tiny_attention", {"width": 4, "heads": 3}, "heads divides width: width is 4, heads is 3"),
    ("tiny_attention", {"width": 0}, "heads divides width"),
    ("tiny_attention", {"experts": 0}, "experts is at least 1, not 0"),
    ("pasta", {"slots": 0}, "slots is at least 1, not 0"),
    ("prefix_propagation", {"mode": "prefix"}, "mode is one of propagate, tune, combine, kernel, not 'prefix'"),
    ("prefix_propagation", {"kernel": "sigmoid"}, "kernel is one of exp, rbf, poly, not 'sigmoid'"),
    ("kernel_mix", {"parts": "qkv"}, "v_base K reads the frozen keys"),
    ("prefix_propagation", {"pool": "cls"}, "pool is one of text, prefix, not 'cls'"),
    ("prefix_propagation", {"length": 0}, "length is at least 1, not 0"),
    ("prefix_propagation", {"mode": "tune", "scale_rows": True}, "scale_rows goes with mode propagate or combine"),
    ("prefix_propagation", {"mode": "kernel", "pool": "prefix"}, "with kernel no row is in front"),
    ("attempt", {"attention": "full"}, "attention is one of sub, constant, dot, linear, none, not 'full'"),
    ("attempt", {"length": 0}, "length and tasks are at least 1"),
    ("attempt", {"tasks": 2, "task": 2}, "task is below tasks; got 8, 2, 2"),
    ("attempt", {"tasks": 2, "task_type": "SEQ_CLS"}, "peft's models with a task_type, here SEQ_CLS, do not pass on"),
    ("attempt", {"ignore_target": True, "sources": 0}, "at least one source"),
    ("attempt", {"ignore_target": True, "attention": "none"}, "at least one source and an attention"),
    ("attempt", {"temperature": 0.0}, "temperature is positive, not 0.0"),
    ("attempt", {"sources": -1}, "sources is at least 0 and bottleneck at least 1; got -1 and 100"),
    ("attempt", {"bottleneck": 0}, "got 4 and 0"),
    ("attempt", {"source_names": ["nli"]}, "sources is 4, and 1 are named: nli"),
    ("prefix_propagation", {"mlp": 0}, "mlp is at least 1, not 0"),
    ("prefix_propagation", {"lengthscale": 0.0}, "lengthscale is positive, not 0.0"),
    ("kernel_mix", {"parts": "qx"}, "made of the letters q, k, v and o, not 'qx'"),
    ("kernel_mix", {"parts": ""}, "made of the letters q, k, v and o"),
    ("kernel_mix", {"v_base": "Q"}, "v_base is K or X, not 'Q'"),
    ("kernel_mix", {"q_rank": -1}, "ranks are at least 0"),
    ("kernel_mix", {"q_rank": 0, "v_rank": 0, "q_shared_rank": 0, "v_shared_rank": 0}, "not all 0"),
]
WRONG += [
    (name, {"dropout": dropout}, f"dropout is at least 0 and below 1, not {dropout}")
    for name in CONFIGS
    if name != "attempt"
    for dropout in (-0.1, 1.0)
]
WRONG += [(name, {"init_weights": "zeros"}, "init_weights is true, false or 'paper', not 'zeros'") for name in CONFIGS]
WRONG += [(name, {"layers_to_transform": []}, "names no block; leave it out to edit all of them") for name in CONFIGS]
WRONG_HEADS = [
    ({"kind": "span"}, "kind is 'sequence', 'token' or 'masked', not 'span'"),
    ({"pooling": "max"}, "pooling is one of cls, mean, pooler, last, prefix, not 'max'"),
    ({"num_labels": 0}, "at least one label, not 0"),
]


def own_fields(config):
    """The options of a method, without those that are peft's alone."""
    theirs = {f.name for f in fields(PeftConfig)} - set(MethodConfig.__annotations__)
    return [f for f in fields(config) if f.name not in theirs]


def test_every_built_in_method_is_tested_here():
    assert set(CONFIGS) == set(EVERY) <= set(METHODS)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_option_has_one_line_of_help(name):
    for option in own_fields(CONFIGS[name]):
        text = option.metadata.get("help", "")
        assert 10 < len(text) <= 120, option.name
        assert "\n" not in text
        assert not text.endswith("."), f"{option.name}: a phrase, not a sentence"


@pytest.mark.parametrize("name", CONFIGS)
def test_every_is_every_option(name):
    default = CONFIGS[name]()
    own = {f.name for f in own_fields(CONFIGS[name])} - {f.name for f in own_fields(MethodConfig)}
    assert set(EVERY[name]) == own
    assert all(getattr(default, key) != value for key, value in EVERY[name].items())


@pytest.mark.parametrize("name", CONFIGS)
def test_json_there_and_back(name, tmp_path):
    cfg = CONFIGS[name](**EVERY[name], **SHARED)
    cfg.save_pretrained(tmp_path)
    for again in (PeftConfig.from_pretrained(str(tmp_path)), type(cfg).from_pretrained(str(tmp_path))):
        assert isinstance(again, MethodConfig)
        assert type(again) is type(cfg)
        assert asdict(again) == asdict(cfg)
        assert again.key() == cfg.key()
    given = {"kind": "token", "num_labels": 5, "pooling": "mean", "dropout": 0.2}
    assert cfg.head == {**given, "words": [], "mask": None}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_key_tells_shapes_apart_and_nothing_else(name):
    cfg, records = CONFIGS[name](), {f.name for f in fields(CONFIGS[name]) if f.metadata.get("record")}
    for key, value in EVERY[name].items():
        also = NEEDS.get((name, key), {})
        same = replace(cfg, **{key: value}, **also).key() == replace(cfg, **also).key()
        assert same == (key in records), key
    assert replace(cfg, layers_to_transform=[0]).key() != cfg.key()
    same = replace(cfg, head=SHARED["head"], init_weights=False, inference_mode=True, modules_to_save=["classifier"])
    assert same.key() == cfg.key()


@pytest.mark.parametrize(("name", "options", "sentence"), WRONG, ids=[f"{n}-{o}" for n, o, _ in WRONG])
def test_what_cannot_be_meant_is_refused_in_one_sentence(name, options, sentence):
    with pytest.raises(ConfigError) as caught:
        CONFIGS[name](**options)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("options", "sentence"), WRONG_HEADS)
def test_heads_that_cannot_be_meant(options, sentence):
    with pytest.raises(ConfigError) as caught:
        HeadConfig(**options)
    assert sentence in str(caught.value)


def test_a_config_without_a_method_is_refused():
    with pytest.raises(ConfigError, match="belongs to no registered method"):
        MethodConfig()
