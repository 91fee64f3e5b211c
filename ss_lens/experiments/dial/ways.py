"""What the dial measures, by the names that its table and its figures use."""

from __future__ import annotations

METHOD, ALL_SITES = "rotate_by", "rotate_by, all sites"
SAS, SAS_ALL_SITES = "rotate_to", "rotate_to, all sites"
SAME = "rotate_by, prompts of the random planes"
UNIFORM, MATCHED = "random planes, uniform", "random planes, equal energy"
RANDOM = (UNIFORM, MATCHED)
HEADINGS = {
    (METHOD, "positive"): "rotate_by, steered sites",
    (METHOD, "negative"): "rotate_by, harmless prompts",
    (ALL_SITES, "positive"): "rotate_by, all sites",
    (SAS, "positive"): "rotate_to (SAS), steered sites",
    (SAS_ALL_SITES, "positive"): "rotate_to (SAS), all sites",
    (SAME, "positive"): "rotate_by, prompts of the random planes",
    (UNIFORM, "positive"): "random planes, uniform",
    (MATCHED, "positive"): "random planes, equal energy",
}
"""What is measured on which class, in the order of tables and figures."""
