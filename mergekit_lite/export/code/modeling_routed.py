"""A dense model whose feed-forward layers are experts under a router that no stock model has."""

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaForCausalLM
from transformers.activations import ACT2FN

from .configuration_routed import RoutedConfig


class Expert(nn.Module):
    """A gated feed-forward layer."""

    def __init__(self, config, width):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden):
        return self.down_proj(self.act_fn(self.gate_proj(hidden)) * self.up_proj(hidden))


class LinearRouter(nn.Module):
    """A softmax over linear scores, of which a token takes the best or the likeliest."""

    def __init__(self, config, rows, layer):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, config.hidden_size))
        nulls = config.num_null_experts
        self.null_weight = nn.Parameter(torch.empty(nulls, config.hidden_size)) if nulls else None
        self.rows, self.count = rows, config.num_experts_per_tok
        self.top_p, self.norm = config.top_p, config.norm_topk_prob
        betas = config.skip_betas
        self.beta = None if betas is None else betas[layer]

    def forward(self, hidden):
        """Return weights and rows of the choices, (tokens, choices); what is left out weighs 0."""
        logits = functional.linear(hidden, self.weight)
        if self.null_weight is not None:
            logits = torch.cat([logits, functional.linear(hidden, self.null_weight)], -1)
        parts = logits.float().softmax(-1)
        taken = parts.shape[-1] if self.top_p is not None else self.count
        weights, rows = parts.topk(taken, -1)
        if self.top_p is not None and self.top_p < 1:
            weights = weights.masked_fill(weights.cumsum(-1) - weights > self.top_p, 0.0)
        if self.beta is not None:
            weights = weights.masked_fill(weights < self.beta * weights[:, :1], 0.0)
        weights = weights.masked_fill(rows >= self.rows, 0.0)
        if self.norm or self.null_weight is not None:
            # A token that has chosen nothing but nulls passes no expert.
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-20)
        return weights.to(hidden.dtype), rows.clamp(max=self.rows - 1)


class CarvedRouter(nn.Module):
    """The router of CMoE: each row says how strongly one neuron of its expert would fire."""

    def __init__(self, config, rows):
        super().__init__()
        self.gate_weight = nn.Parameter(torch.empty(rows, config.hidden_size))
        self.up_weight = nn.Parameter(torch.empty(rows, config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(rows))
        self.scale = nn.Parameter(torch.zeros(rows))
        self.count = config.num_experts_per_tok

    def forward(self, hidden):
        """Return weights and rows of the choices, (tokens, choices)."""
        fired = functional.silu(functional.linear(hidden, self.gate_weight))
        fired = fired * functional.linear(hidden, self.up_weight)
        scores = fired.abs().float().softmax(-1)
        rows = (scores + self.bias.float()).topk(self.count, -1).indices
        weights = 1 + scores * self.scale.float()
        return weights.gather(-1, rows).to(hidden.dtype), rows


class RoutedMLP(nn.Module):
    """The experts of a layer, their router, and the expert that every token passes."""

    def __init__(self, config, layer):
        super().__init__()
        width = config.moe_intermediate_size or config.intermediate_size
        self.expert_map = config.expert_map
        if self.expert_map is not None and not isinstance(self.expert_map[0], int):
            self.expert_map = self.expert_map[layer]
        rows = config.num_experts if self.expert_map is None else len(self.expert_map)
        carved = config.router == "cmoe"
        self.gate = CarvedRouter(config, rows) if carved else LinearRouter(config, rows, layer)
        self.experts = nn.ModuleList([Expert(config, width) for _ in range(config.num_experts)])
        shared = config.shared_intermediate_size
        self.shared_experts = Expert(config, shared) if shared else None

    def forward(self, hidden):
        flat = hidden.reshape(-1, hidden.shape[-1])
        weights, chosen = self.gate(flat)
        if self.expert_map is not None:
            chosen = torch.tensor(self.expert_map, device=chosen.device)[chosen]
        out = torch.zeros_like(flat) if self.shared_experts is None else self.shared_experts(flat)
        for number in chosen[weights != 0].unique().tolist():
            token, slot = torch.where((chosen == number) & (weights != 0))
            said = self.experts[number](flat[token]) * weights[token, slot, None]
            out = out.index_add(0, token, said)
        return out.view_as(hidden)


class RoutedForCausalLM(LlamaForCausalLM):
    """A Llama with experts in the layers that its config names."""

    config_class = RoutedConfig

    def __init__(self, config):
        super().__init__(config)
        layers = self.model.layers
        routed = range(len(layers)) if config.routed_layers is None else config.routed_layers
        for index in routed:
            layers[index].mlp = RoutedMLP(config, index)
        self.post_init()
