"""`torch.nn.MultiheadAttention` after heads are gone: narrower inside than the model is."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mfac.masks.cutting import channels_of


class FewerHeads(nn.MultiheadAttention):
    """An attention of which only some heads are left, called as `torch.nn.MultiheadAttention` is.

    Torch's own module makes its heads as wide together as the model, and refuses others. The
    projections of queries, keys and values are separate here, [h w, in] for h heads of width w; the
    output projection is [embed_dim, h w]. Torch's fused encoder layer is not taken for it.

    Args:
        whole: The attention that heads are taken from, which is not changed.
        kept: Its heads that stay, increasing, int64.

    Raises:
        ValueError: If the attention has `bias_k` and `bias_v`, or `add_zero_attn`.
    """

    def __init__(self, whole: nn.MultiheadAttention, kept: Tensor) -> None:
        nn.Module.__init__(self)  # nn.MultiheadAttention's own would make all heads anew
        if whole.bias_k is not None or whole.add_zero_attn:
            raise ValueError("has `bias_k` or `add_zero_attn`, which an attention with fewer heads does not take")
        width = whole.head_dim
        channels = channels_of(kept, width)
        self.embed_dim, self.kdim, self.vdim = whole.embed_dim, whole.kdim, whole.vdim
        self.num_heads, self.head_dim = len(kept), width
        self.dropout, self.batch_first, self.training = whole.dropout, whole.batch_first, whole.training
        self._qkv_same_embed_dim = False  # as torch says it where the projections are separate
        self.bias_k, self.bias_v, self.add_zero_attn = None, None, False
        self.register_parameter("in_proj_weight", None)
        self.register_parameter("in_proj_bias", None)
        if whole.in_proj_weight is not None:
            projections = list(whole.in_proj_weight.chunk(3))
        else:
            projections = [whole.q_proj_weight, whole.k_proj_weight, whole.v_proj_weight]
        for name, weight in zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), projections, strict=True):
            trained = (weight if whole.in_proj_weight is None else whole.in_proj_weight).requires_grad
            setattr(self, name, nn.Parameter(weight.detach()[channels].clone(), trained))
        if whole.in_proj_bias is not None:
            biases = [bias[channels] for bias in whole.in_proj_bias.detach().chunk(3)]
            self.in_proj_bias = nn.Parameter(torch.cat(biases), whole.in_proj_bias.requires_grad)
        output = whole.out_proj
        self.out_proj = type(output)(  # with no memory of its own, since all is taken over
            len(channels), output.out_features, bias=output.bias is not None, device="meta"
        )
        self.out_proj.weight = nn.Parameter(output.weight.detach()[:, channels].clone(), output.weight.requires_grad)
        if output.bias is not None:
            self.out_proj.bias = nn.Parameter(output.bias.detach().clone(), output.bias.requires_grad)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As of `torch.nn.MultiheadAttention`.

        Args:
            query: [n, t, embed_dim] with `batch_first`, [t, n, embed_dim] without; [t, embed_dim].
            key: Likewise, of kdim channels and s positions.
            value: Likewise, of vdim channels and s positions.
            key_padding_mask: [n, s] or [s]; True leaves a key out; numbers are added to its scores.
            need_weights: Whether attention weights are returned.
            attn_mask: [t, s], as `key_padding_mask`: one mask for all heads.
            average_attn_weights: Whether the mean over heads that are left is returned.
            is_causal: A hint that `attn_mask` is causal, which changes nothing.

        Returns:
            The output, shaped as the query, and the weights [n, t, s] or [n, heads, t, s], or None.

        Raises:
            ValueError: If there is a mask for each head.
        """
        batched = query.dim() == 3
        if not batched:
            query, key, value = (tensor[None] for tensor in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
        q, k, v = (
            functional.linear(tensor, weight, bias).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for tensor, weight, bias in zip((query, key, value), self._weights(), self._biases(), strict=True)
        )
        mask = _added(attn_mask, key_padding_mask, query.dtype)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q * self.head_dim**-0.5 @ k.transpose(-2, -1)
            weights = functional.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        output = functional.linear(mixed.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if not batched:
            return output[0], None if weights is None else weights[0]
        return output if self.batch_first else output.transpose(0, 1), weights

    def _weights(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q_proj_weight, self.k_proj_weight, self.v_proj_weight

    def _biases(self) -> tuple[Tensor | None, ...]:
        return (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)


def _added(attn_mask: Tensor | None, key_padding_mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores [n, heads, t, s], or None."""
    if attn_mask is not None and attn_mask.dim() != 2:
        raise ValueError(
            "Parameter `attn_mask` should be one for all heads, [t, s]: heads of this attention are gone. Found shape "
            f"{tuple(attn_mask.shape)}."
        )
    found: Tensor | None = None
    for mask in (attn_mask, None if key_padding_mask is None else key_padding_mask[:, None, None]):
        if mask is not None:
            if mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))
            found = mask if found is None else found + mask
    return found
