"""One forward pass: which columns are unembedded, and in what layout."""

from __future__ import annotations

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.models import forward


@pytest.mark.parametrize("keep", [1, 3, 7, 9])
def test_the_last_columns_are_unembedded_in_one_product_and_as_in_a_whole_pass(
    keep: int, tiny_models: dict[str, TransformerBridge]
) -> None:
    model = tiny_models["qwen2"]
    ids = torch.arange(28).reshape(4, 7)
    mask = torch.ones_like(ids)
    layouts = []
    head = model.original_model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, given: layouts.append(given[0]))
    try:
        with torch.inference_mode():
            found = forward.run_all(model, ids, mask, keep=keep)
            whole = model(ids, attention_mask=mask)
    finally:
        handle.remove()
    # Otherwise PyTorch multiplies row by row, and copies the weights for each in bfloat16.
    assert layouts[0].is_contiguous()
    assert layouts[0].shape[1] == min(keep, 7)
    torch.testing.assert_close(found, whole[:, -keep:], rtol=1e-5, atol=1e-5)
