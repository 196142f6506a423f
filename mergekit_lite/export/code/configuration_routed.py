"""Config of a dense model whose feed-forward layers are experts under a router."""

from transformers import LlamaConfig


class RoutedConfig(LlamaConfig):
    """A Llama's config, with what its routers do.

    Args:
        num_experts: experts that are stored in a layer.
        moe_intermediate_size: width of an expert.
        shared_intermediate_size: width of the expert that every token passes; 0 for none.
        routed_layers: indices of the layers that have experts.
        router: `linear`: logits are a matrix times the hidden state, weights their softmax over all
            experts. `cmoe`: the scores of carved experts are softmax(|silu(g h) * (u h)|), chosen
            with a bias added, and weigh 1 + score * scale.
        num_experts_per_tok: how many of the router's choices a token takes.
        top_p: take instead the likeliest choices until their weights add up to more than this.
        norm_topk_prob: make the weights of the choices add up to 1.
        num_null_experts: choices more that do nothing; the weights of the others add up to 1.
        skip_betas: for each layer: leave out each choice whose weight is below beta times that of
            the first.
        expert_map: for each row of the router, the expert that it stands for; None: its own.
            A list of such lists has one for each layer of the model.
    """

    model_type = "routed_llama"

    def __init__(
        self,
        num_experts=8,
        moe_intermediate_size=None,
        shared_intermediate_size=0,
        routed_layers=None,
        router="linear",
        num_experts_per_tok=2,
        top_p=None,
        norm_topk_prob=True,
        num_null_experts=0,
        skip_betas=None,
        expert_map=None,
        **kwargs,
    ):
        self.num_experts = num_experts
        self.moe_intermediate_size = moe_intermediate_size
        self.shared_intermediate_size = shared_intermediate_size
        self.routed_layers = routed_layers
        self.router = router
        self.num_experts_per_tok = num_experts_per_tok
        self.top_p = top_p
        self.norm_topk_prob = norm_topk_prob
        self.num_null_experts = num_null_experts
        self.skip_betas = skip_betas
        self.expert_map = expert_map
        super().__init__(**kwargs)
