"""A dense model whose linear layers have several adapters each, chosen token by token."""

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaForCausalLM

from .configuration_lora_moe import LoraMoeConfig


class MixtureLinear(nn.Linear):
    """A linear layer, and what its chosen adapters add: W x + sum of weight_i B_i A_i x."""

    def __init__(self, layer, config, rank):
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        count = config.num_experts
        self.experts_a = nn.Parameter(torch.randn(count, rank, self.in_features) / rank)
        self.experts_b = nn.Parameter(torch.zeros(count, self.out_features, rank))
        self.gate = nn.Parameter(torch.zeros(count, self.in_features))
        self.score, self.temperature = config.router_score, config.router_temperature
        self.count = config.num_experts_per_tok
        self.shift = None

    def route(self, tokens):
        """Return the weights of all adapters, (tokens, adapters); of those not chosen 0."""
        seen = tokens.float()
        if self.score == "layer_norm":
            seen = functional.layer_norm(seen, seen.shape[-1:])
        logits = functional.linear(seen, self.gate.float())
        if self.score == "absolute":
            logits = logits.abs()
        if self.shift is not None:
            # A row for each request, whose tokens (and beams) follow each other.
            shift = self.shift.to(logits)
            logits = logits + shift.repeat_interleave(len(logits) // len(shift), 0)
        best, chosen = logits.topk(self.count, -1)
        weights = (best / self.temperature).softmax(-1)
        return torch.zeros_like(logits).scatter(-1, chosen, weights).to(tokens.dtype)

    def forward(self, hidden):
        tokens = hidden.reshape(-1, hidden.shape[-1])
        low = functional.linear(tokens, self.experts_a.flatten(0, 1))
        weights = self.route(tokens).repeat_interleave(self.experts_a.shape[1], -1)
        said = functional.linear(low * weights, self.experts_b.transpose(0, 1).flatten(1))
        return super().forward(hidden) + said.view(*hidden.shape[:-1], -1)


class LoraMoeForCausalLM(LlamaForCausalLM):
    """A Llama with adapters in the linear layers that its config names."""

    config_class = LoraMoeConfig

    def __init__(self, config):
        super().__init__(config)
        for name, rank in config.expert_modules.items():
            parent, _, leaf = name.rpartition(".")
            parent = self.get_submodule(parent)
            setattr(parent, leaf, MixtureLinear(getattr(parent, leaf), config, rank))
        size = config.task_embedding_size
        table = torch.ones(config.num_experts, size)
        self.task_embeddings = nn.Parameter(table) if size else None
        self.post_init()

    @torch.no_grad()
    def set_task(self, embedding):
        """Say what the next requests are about; None takes it back.

        Args:
            embedding: of their description, by the model that embedded the adapters' tasks: (size)
                for all requests, or (requests, size) with a row for each of the batch.
        """
        shift = None
        if embedding is not None:
            if self.task_embeddings is None:
                raise ValueError("this model has no embeddings of its adapters' tasks")
            table = functional.normalize(self.task_embeddings.float(), dim=-1)
            asked = functional.normalize(torch.as_tensor(embedding).to(table), dim=-1)
            shift = self.config.task_scale * (asked.reshape(-1, table.shape[-1]) @ table.T)
        for module in self.modules():
            if isinstance(module, MixtureLinear):
                module.shift = shift
