"""Models in GGUF files: what loads, and which damage is refused."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

import ss_lens
from ss_lens import UserError
from tests.gguf_files import logits_of
from tests.oracles import relative_error


def test_a_gguf_file_loads_with_its_weights_and_its_chat_template(
    tiny_gguf: tuple[Path, LlamaForCausalLM],
) -> None:
    path, original = tiny_gguf
    model = ss_lens.load_model(path)
    ids = torch.tensor([[1, 9, 100, 264, 6]])
    with torch.no_grad():
        assert relative_error(logits_of(model, ids), original(ids).logits) < 1e-4
    text = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "w1"}], add_generation_prompt=True, tokenize=False
    )
    assert text == "<s> system be helpful </s> user w1 </s> assistant"
    assert len(ss_lens.generate(model, ["w1"], max_new_tokens=2)) == 1


def test_a_file_that_is_no_gguf_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "wrong.gguf"
    path.write_bytes(b"not a model" * 10)
    with pytest.raises(UserError, match=f"model '{path}' could not be loaded"):
        ss_lens.load_model(path)


def garbage(path: Path, data: bytes, seed: int) -> None:
    path.write_bytes(data[:8] + random.Random(seed).randbytes(500))


@pytest.mark.parametrize("kept", [4, 8, 20, 24, 60, 1000, -5000, -1])
def test_a_gguf_file_that_was_cut_is_one_clear_line(
    kept: int, tiny_gguf: tuple[Path, LlamaForCausalLM], tmp_path: Path
) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny_gguf[0].read_bytes()[:kept])
    with pytest.raises(UserError, match=f"model '{path}' could not be loaded") as caught:
        ss_lens.load_model(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(4))
def test_garbage_behind_the_right_start_is_one_clear_line(
    seed: int, tiny_gguf: tuple[Path, LlamaForCausalLM], tmp_path: Path
) -> None:
    path = tmp_path / "garbage.gguf"
    garbage(path, tiny_gguf[0].read_bytes(), seed)
    with pytest.raises(UserError, match=f"model '{path}' could not be loaded") as caught:
        ss_lens.load_model(path)
    assert "\n" not in str(caught.value)


def test_a_tensor_under_another_name_is_missed(
    tiny_gguf: tuple[Path, LlamaForCausalLM], tmp_path: Path
) -> None:
    path = tmp_path / "renamed.gguf"
    data = tiny_gguf[0].read_bytes()
    assert data.count(b"blk.1.ffn_up.weight") == 1
    path.write_bytes(data.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight"))
    with pytest.raises(UserError, match=r"lacks 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        ss_lens.load_model(path)


def test_a_gguf_file_that_says_fewer_layers_than_it_holds_is_refused(
    tiny_gguf: tuple[Path, LlamaForCausalLM], tmp_path: Path
) -> None:
    """transformers would leave the layers beyond out, without a word."""
    data, key = tiny_gguf[0].read_bytes(), b"llama.block_count"
    at = data.index(key) + len(key) + 4  # after the type of the value
    assert data[at : at + 4] == (2).to_bytes(4, "little")
    path = tmp_path / "fewer.gguf"
    path.write_bytes(data[:at] + (1).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(UserError, match="says 1 layers and holds tensors of layer 1"):
        ss_lens.load_model(path)
