# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Selective Steering in a quarter of an hour
#
# A language model's readiness to refuse is, to a good part, laid out along one direction of its
# activations. Selective Steering (arXiv 2601.19375) finds that direction, picks the places in the
# network where the two kinds of request lie on *opposite sides* of it, and rotates the activations
# there, inside one plane and without changing their length. The angle is the dial.
#
# This notebook walks through it once: load, capture, look, calibrate, steer. Everything is
# computed here, on whatever machine you have, and everything slow is kept in the store, so that a
# second run is quick.

# %%
import ss_lens
from analyses.run_figures import cosine_heatmap, norm_growth, sign_agreement

# %% tags=["parameters"]
prompts_per_class = 96
held_out = 32
answers_to = 4
new_tokens = 32

# %% [markdown]
# ## The model and the prompts
#
# The model is opened through TransformerLens, so every intermediate activation has a name. The
# dataset holds harmful and harmless requests that match in topic, length and wording: what differs
# between the two classes is meant to be the harm, not the style. We keep some prompts aside, so that
# what we look at was not used for finding it.

# %%
model = ss_lens.load_model()
data = ss_lens.load_dataset("refusal").head(prompts_per_class)
parts = data.split(dev=1, test=held_out, seed=0)
parts

# %% [markdown]
# ## Capture
#
# One pass over the prompts reads three streams of every layer at the last token of the prompt, where
# the model is about to begin its answer: the residual stream as attention reads it (`ln1_out`), as
# the MLP reads it (`ln2_out`), and the stream itself (`resid_post`).

# %%
acts = ss_lens.capture(model, parts.train)
unseen = ss_lens.capture(model, parts.test)
acts.positive.shape

# %% [markdown]
# ## How long are the activations?
#
# The stream grows by more than an order of magnitude with depth, while the norm layers rescale it for
# their readers. This is why a fixed vector added to the stream means something else at every layer,
# and why an edit that keeps norms is attractive.

# %%
norm_growth.figure(norm_growth.measure(acts))

# %% [markdown]
# ## Calibrate
#
# Each site proposes a direction: the difference of the two class means. The proposal that agrees most
# with the others becomes the global direction; with the first principal component of all proposals it
# spans the plane. Block 0 before attention has no direction at all, because every prompt ends in the
# same template token there. The calibration says so instead of dividing by almost nothing.

# %%
calibration = ss_lens.calibrate(acts)
calibration.direction_site, calibration.candidates.excluded, calibration.selected_sites

# %%
cosine_heatmap.figure(cosine_heatmap.measure(calibration))

# %% [markdown]
# ## Where do the classes lie on opposite sides?
#
# Measured on the held-out prompts. Shaded sites are the ones that will be steered; they were chosen
# on the calibration prompts. An open marker is a warning: with this many prompts the sign at that
# site is not settled.

# %%
sign_agreement.figure(sign_agreement.measure(unseen, calibration))

# %% [markdown]
# ## Turn the dial
#
# One angle per row, so that all prompts and angles are one batch. Zero degrees is the untouched
# model. Judge the texts by reading them, and distrust any single one: the measured rates, with their
# intervals, come from `ss-lens run`.

# %%
answers = ss_lens.sweep_angles(
    model,
    calibration,
    ss_lens.RotateBy,
    parts.test.negative[:answers_to],
    angles_deg=[0, 60, 120, 180],
    max_new_tokens=new_tokens,
)
answers[["prompt", "angle_deg", "response"]]

# %% [markdown]
# The same with the context manager, for one angle and any generation code of your own:

# %%
with ss_lens.steer(model, calibration, ss_lens.RotateBy(angle_deg=60)):
    texts = ss_lens.generate(model, ["How do I bake bread?"], max_new_tokens=new_tokens)
texts
