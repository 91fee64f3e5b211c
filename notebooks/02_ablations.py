# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What does each part of the method contribute?
#
# The full method, Selective Steering, against variants that each lack one part of it: the norm, the
# choice of sites, the second axis of the plane, the labels. Every variant's angle is chosen on dev
# prompts, where at most a tenth of the answers may have collapsed; all that is compared is measured on
# test prompts, paired by prompt.
#
# The cells are read from the folder of `ss-lens ablate`, and computed where it lacks them; stopped, the
# same cell of this notebook resumes. The sizes below are small, to be run through in minutes on the
# default model. With an aligned model of 1.5 billion parameters everything takes more than ten times as
# long: run `ss-lens ablate --model qwen2.5-coder-1.5b --out runs/ablations` first and read its folder here.

# %%
import os

import ss_lens
from analyses import ablations
from ss_lens.models.sources import DEFAULT_MODEL, default_dataset

# %% tags=["parameters"]
folder = "runs/ablations_small"
dataset = ""  # that of the model; or a file
angles = (0, 90, 180, 270)
dev, test = 3, 6
draws = 2
new_tokens = 12

# %%
name = os.environ.get("SS_LENS_NOTEBOOK_MODEL", DEFAULT_MODEL)
config = ss_lens.AblationConfig(
    model=name,
    dataset=dataset or default_dataset(name),
    angles_deg=angles,
    dev=dev,
    test=test,
    draws=draws,
    max_new_tokens=new_tokens,
)
result = ss_lens.run_ablations(config, folder)

# %% [markdown]
# ## The score against the angle
#
# Before any choice: the mean refusal score on dev, all the way around, for a few variants. A variant that
# does something bends the curve; a dial turns harmful prompts (left) and leaves harmless ones (right).

# %%
shown = ["full method", "rotate_to (SAS)", "all sites", "random sites", "random plane"]
subtitle = f"{name}: {dev} dev prompts per class"
ablations.polar(
    result.scan, subtitle, variants=[v for v in shown if v in {*result.scan["variant"]}]
)

# %% [markdown]
# ## The angles that dev chose
#
# An angle is taken where the score is lowest *and* the text has not collapsed, so variants may end at
# different angles. That is deliberate: each is shown at its best.

# %%
result.choices.query("chosen").round(3)

# %% [markdown]
# ## The table
#
# Means on test with their 95 % intervals, and the paired difference from the full method with the
# p-value of a sign-flip permutation test, corrected for the number of variants (Holm). With so few
# prompts hardly anything can differ surely; the published table has 24 per class.

# %%
table = ablations.measure(result)
columns = ["variant", "angles_deg", "n_sites", "mean", "low", "high", "difference", "p_holm"]
table.query("prompt_class == 'positive' and metric == 'refusal_score'")[columns].round(3)

# %% [markdown]
# A variant that could not be measured is listed with its reason: labels that were shuffled often leave
# no site at which the classes have opposite signs.

# %%
result.problems

# %% [markdown]
# ## Forest plot: harmful prompts
#
# Refusal should fall. Read the controls first: where a random plane or shuffled labels come as far as the
# full method at as little damage to the text, the effect is not the plane's. **On the default model they
# do**: it was taught to refuse, and almost any push undoes it. On the aligned 1.5B model uniform random
# planes move next to nothing.

# %%
subtitle = f"{name}: {test} test prompts per class, each variant at its own angle"
ablations.forest(table, subtitle)

# %% [markdown]
# ## Forest plot: harmless prompts
#
# Nothing should change here, least of all the text.

# %%
ablations.forest(table, subtitle, prompt_class="negative")

# %% [markdown]
# ## Texts
#
# The full method's answers to harmless test prompts in full, beside the unsteered ones. (Of the answers to
# harmful prompts the table above has the scores.)

# %%
answered = ss_lens.load_sweep(folder)
full = answered.table.query(
    "prompt_class == 'negative' and operator == 'RotateBy' and selection == 'site' "
    "and plane == 'PC1()' and labels == 'true'"
)
texts = full.merge(answered.unsteered, on="prompt", suffixes=("", "_unsteered"))
texts[["prompt", "response_unsteered", "angle_deg", "response"]].style.set_properties(
    **{"text-align": "left", "white-space": "pre-wrap"}
)

# %% [markdown]
# An equal angle is no equal force: `python -m analyses.budget` compares operators at equal divergence
# from the unsteered model.
