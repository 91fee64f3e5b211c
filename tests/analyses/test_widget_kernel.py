"""The dial in a real Jupyter kernel: the stop button and the kernel's interrupt, by messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import KernelManager
from jupyter_client.blocking.client import BlockingKernelClient

from ss_lens import ContrastiveDataset

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120
SET_UP = """
import time
import pandas as pd
import ss_lens
from analyses.widget import LiveDial
from tests.interrupts import hooks_on

model = ss_lens.load_model({model!r})
data = ss_lens.load_dataset(positive={positive!r}, negative={negative!r})
every = ss_lens.calibrate(ss_lens.capture(model, data), rule="uniform")
at_once, ss_lens.stream = ss_lens.stream, lambda *given, **named: (
    (time.sleep(0.1), grown)[1] for grown in at_once(*given, **named)
)
dial = LiveDial(model, {{"all sites": every}}, ["w9 w70"], max_new_tokens=40,
                score=lambda model, prompts: pd.DataFrame({{"one": [1.0]}}))
print(dial.comm.comm_id)
"""


@pytest.fixture
def kernel() -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(ROOT))
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=SECONDS)
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def printed(client: BlockingKernelClient, code: str) -> str:
    """What a cell prints."""
    said: list[str] = []

    def hear(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
            said.append(message["content"]["text"])

    reply = client.execute_interactive(code, timeout=SECONDS, output_hook=hear)
    assert reply["content"]["status"] == "ok", reply["content"]
    return "".join(said).strip()


def press(client: BlockingKernelClient, dial: str, **content: Any) -> None:
    """Send what the front end sends."""
    data = {"method": "custom", "content": content}
    client.shell_channel.send(client.session.msg("comm_msg", {"comm_id": dial, "data": data}))


def told(
    client: BlockingKernelClient, enough: Callable[[dict[str, Any]], bool]
) -> list[dict[str, Any]]:
    """The states that the dial shows, up to the first that is enough."""
    states: list[dict[str, Any]] = []
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        message = client.get_iopub_msg(timeout=SECONDS)
        assert message["msg_type"] != "error", message["content"]
        if message["msg_type"] == "comm_msg" and message["content"]["data"]["method"] == "custom":
            states.append(message["content"]["data"]["content"])
            if enough(states[-1]):
                return states
    raise AssertionError(f"the dial was still at {states[-1:]}")


@pytest.mark.slow
def test_a_running_answer_is_stopped_by_the_button_and_by_the_kernels_interrupt(
    kernel: tuple[KernelManager, BlockingKernelClient],
    tiny_folders: dict[str, Path],
    tiny_data: ContrastiveDataset,
) -> None:
    manager, client = kernel
    classes = {"positive": tiny_data.positive, "negative": tiny_data.negative}
    dial = printed(client, SET_UP.format(model=str(tiny_folders["llama"]), **classes))

    press(client, dial, kind="ask", run=1, prompt="w9 w70", angle_deg=90.0)
    states = told(client, lambda state: len(state.get("text", "").split()) >= 3)
    assert states[0] == {"run": 1, "state": "running"}
    press(client, dial, kind="stop")
    last = told(client, lambda state: state["state"] != "running")[-1]
    assert last["state"] == "stopped"
    assert 3 <= len(last["text"].split()) < 20
    assert printed(client, "dial.wait(); print(hooks_on(model))") == "0"

    press(client, dial, kind="ask", run=2, prompt="w9 w70", angle_deg=180.0)
    told(client, lambda state: "text" in state)
    waiting = client.execute("dial.wait()", stop_on_error=False)
    time.sleep(0.5)
    manager.interrupt_kernel()
    reply = client.get_shell_msg(timeout=SECONDS)
    while reply["parent_header"].get("msg_id") != waiting:
        reply = client.get_shell_msg(timeout=SECONDS)
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    assert printed(client, "print(hooks_on(model), dial.shown['state'])") == "0 stopped"

    press(client, dial, kind="ask", run=3, prompt="w9 w70", angle_deg=0.0)
    done = told(client, lambda state: state["state"] == "done" and state["run"] == 3)[-1]
    assert done["text"] == done["unsteered"]
