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
# The cells are read from the folder of `ss-lens ablate`, and computed where it lacks them: about a
# quarter of an hour on two cores, and it can be stopped at any time.

# %% tags=["parameters"]
folder = "runs/ablations"
angles = (0, 45, 90, 135, 180, 225, 270, 315)
dev, test = 16, 24
draws = 5
new_tokens = 32

# %%
import ss_lens
from analyses import ablations

config = ss_lens.AblationConfig(
    model="smollm2-135m-refusal",
    angles_deg=angles,
    dev=dev,
    test=test,
    draws=draws,
    max_new_tokens=new_tokens,
)
result = ss_lens.run_ablations(config, folder)

# %% [markdown]
# ## The table
#
# Means on test with their 95 % intervals, and the paired difference from the full method with the
# p-value of a sign-flip permutation test, corrected for the number of variants (Holm). A variant that
# could not be measured is listed with its reason: labels that were shuffled often leave no site at
# which the classes have opposite signs.

# %%
table = ablations.measure(result)
columns = ["variant", "angles_deg", "n_sites", "mean", "low", "high", "difference", "p_holm"]
table.query("prompt_class == 'positive' and metric == 'refusal_score'")[columns].round(3)

# %%
result.choices.query("chosen").round(3)

# %%
result.problems

# %% [markdown]
# ## Forest plot
#
# Harmful prompts: refusal should fall. Harmless ones: nothing should change, least of all the text.

# %%
subtitle = f"default model; refusal: {test} test prompts per class, each variant at its own angle"
ablations.forest(table, subtitle)

# %%
ablations.forest(table, subtitle, prompt_class="negative")

# %% [markdown]
# An equal angle is no equal force: `python -m analyses.budget` compares operators at equal divergence
# from the unsteered model.

# %% [markdown]
# ## Around the circle
#
# The mean refusal score on dev at every angle: what the angles were chosen by.

# %%
shown = ["full method", "rotate_to (SAS)", "all sites", "random sites", "random plane"]
ablations.polar(result.scan, f"default model; refusal: {dev} dev prompts per class", variants=shown)
