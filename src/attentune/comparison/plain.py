"""A backbone with the linear head of `attentune.heads`, for contenders that attentune does not adapt itself."""

from typing import Any, cast

from peft import PeftModel
from torch import Tensor, nn

from attentune.heads import HeadConfig, States, TaskOutput
from attentune.model import TaskModel


class Plain(nn.Module):
    """A bare, partly free, or peft-adapted backbone, and one linear layer `heads` on its pooled (or every) state."""

    def __init__(self, backbone: Any, head: HeadConfig, prompt: int = 0) -> None:
        super().__init__()
        bare: Any = backbone.get_base_model() if isinstance(backbone, PeftModel) else backbone
        self.body = TaskModel(bare)
        self.body.backbone = backbone
        self.head, self.prompt = head, prompt
        self.heads = nn.Linear(int(bare.config.hidden_size), head.num_labels)
        nn.init.normal_(self.heads.weight, std=0.02)
        nn.init.zeros_(self.heads.bias)

    @property
    def config(self) -> Any:
        """The backbone's config."""
        return self.body.config

    def states(self, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> Tensor:
        """What the head reads: [B,D], or [B,T,D] of a head on tokens. Prompt rows of peft are not among it."""
        if isinstance(self.body.backbone, PeftModel) and self.prompt:
            kwargs.pop("token_type_ids", None)  # peft's prompts have none, and it would warn of them at every batch
        last = cast("Tensor", self.body(input_ids, attention_mask, **kwargs).last_hidden_state)
        last = last[:, last.shape[1] - input_ids.shape[1] :]
        if self.head.kind == "token":
            return last
        return States(last, attention_mask, None).pooled(self.head.pooling, None)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> TaskOutput:
        """input_ids [B,T], attention_mask [B,T] -> logits [B,C] or [B,T,C], in the head's precision."""
        states = self.states(input_ids, attention_mask, **kwargs).to(self.heads.weight.dtype)
        return TaskOutput(logits=self.heads(nn.functional.dropout(states, self.head.dropout, self.training)))


def is_pooler(name: str) -> bool:
    """Whether a parameter belongs to a backbone's own pooler, which the head does not read."""
    return "pooler" in name.split(".")
