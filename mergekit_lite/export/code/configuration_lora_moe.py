"""Config of a dense model with several adapters in its linear layers and a gate in each."""

from transformers import LlamaConfig


class LoraMoeConfig(LlamaConfig):
    """A Llama's config, with what its adapters and gates are.

    Args:
        num_experts: adapters.
        num_experts_per_tok: how many of them each token passes, in every module.
        expert_names: what they are called, in order.
        expert_modules: name of each linear layer that has adapters -> their rank.
        router_score: what is multiplied with a gate's rows: `linear`, the token; `layer_norm`, the
            token at mean 0 and variance 1; `absolute`, the token, and the sign is dropped.
        router_temperature: what logits are divided by before the softmax over the chosen adapters.
        task_embedding_size: entries of the embeddings of the adapters' tasks; 0 for none.
        task_scale: weight of the cosine of a request's embedding and an adapter's.
    """

    model_type = "lora_moe_llama"

    def __init__(
        self,
        num_experts=1,
        num_experts_per_tok=1,
        expert_names=None,
        expert_modules=None,
        router_score="linear",
        router_temperature=1.0,
        task_embedding_size=0,
        task_scale=0.0,
        **kwargs,
    ):
        self.num_experts = num_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.expert_names = expert_names or [str(number) for number in range(num_experts)]
        self.expert_modules = expert_modules or {}
        self.router_score = router_score
        self.router_temperature = router_temperature
        self.task_embedding_size = task_embedding_size
        self.task_scale = task_scale
        super().__init__(**kwargs)
