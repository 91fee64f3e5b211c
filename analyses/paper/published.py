"""What arXiv 2601.19375 reports for Qwen2.5-1.5B-Instruct, from its authors' project page."""

from __future__ import annotations

from collections.abc import Mapping

MODEL = "Qwen2.5-1.5B-Instruct"
SOURCE = (
    "the tables Controllability, Coherence and Robustness of the authors' project page "
    "(<https://knoveleng.github.io/steering>, repository knoveleng/steering at 6423263)"
)
COLUMNS = ("HarmBench", "LLM judge", "refusal", "repetition", "language", "compression", "ARC")
"""Success by HarmBench's classifier and by a judge, refusal by phrases; repeated 4-grams, share of
English characters, bytes after compression over bytes before; accuracy on tinyARC."""
ROWS: Mapping[str, tuple[float | None, ...]] = {
    "unsteered": (0.0000, None, None, None, None, None, 0.69),
    "Selective Steering": (0.7404, 0.6635, 0.0000, 0.0516, 1.0000, 0.7201, 0.69),
    "SAS": (0.1346, 0.0385, 0.0000, 0.4649, 0.9196, 0.4353, 0.08),
    "AAS": (0.3942, 0.2981, 0.0000, 0.4149, 0.9884, 0.4970, 0.70),
    "Activation Addition": (0.1346, 0.0385, 0.0000, 0.1849, 0.3093, 0.2192, 0.08),
    "Directional Ablation": (0.2500, 0.1635, 0.6250, 0.0507, 0.9999, 0.5278, 0.66),
}
