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
# # Selective Steering in a quarter of an hour
#
# A language model's readiness to refuse is, to a good part, laid out along one direction of its
# activations. Selective Steering (arXiv 2601.19375) finds that direction, picks the places in the
# network where the two kinds of request lie on *opposite sides* of it, and rotates the activations
# there, inside one plane and without changing their length. The angle is the dial.
#
# This notebook walks through it once: load, capture, look, calibrate, turn, read. Everything is
# computed here, on whatever machine you have, and everything slow is kept in the store, so that a
# second run is quick.
#
# **Which model?** The default is a model of 135 million parameters that was *taught* to refuse. It shows
# that the machinery works; random planes move it as far as the method does, so its dial proves nothing
# about the method. For a behaviour that visibly turns, set `SS_LENS_NOTEBOOK_MODEL=qwen2.5-coder-1.5b`
# before starting Jupyter: an aligned model, which needs 10 GB of memory. Only the name changes.

# %%
import os

import ss_lens
from analyses import angle_response
from analyses.run_figures import cosine_heatmap, norm_growth, sign_agreement
from analyses.widget import LiveDial
from ss_lens.models.sources import DEFAULT_MODEL, default_dataset

# %% tags=["parameters"]
prompts_per_class = 64
held_out = 8
answers_to = 3
angles = range(0, 360, 45)
new_tokens = 32

# %% [markdown]
# ## The model and the prompts
#
# The model is opened through TransformerLens, so every intermediate activation has a name. The dataset
# holds harmful and harmless requests. We split it in three: the first part is calibrated on, the second
# (dev) is where an angle is chosen, the third (test) is what we read. What we look at was then not used
# for finding it.

# %%
name = os.environ.get("SS_LENS_NOTEBOOK_MODEL", DEFAULT_MODEL)
model = ss_lens.load_model(name)
data = ss_lens.load_dataset(default_dataset(name)).head(prompts_per_class)
parts = data.split(dev=held_out, test=held_out, seed=0)
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
calibration

# %% [markdown]
# How alike are the proposals of different sites? A bright square along the diagonal is a stretch of
# the network that shares one direction.

# %%
cosine_heatmap.figure(cosine_heatmap.measure(calibration))

# %% [markdown]
# ## Where do the classes lie on opposite sides?
#
# Measured on the held-out prompts. Shaded sites are the ones that will be steered; they were chosen
# on the calibration prompts. The figure says itself where, with so few prompts, a sign is not settled.

# %%
sign_agreement.figure(sign_agreement.measure(unseen, calibration))

# %% [markdown]
# ## Turn the dial
#
# The refusal score is the log-odds, in nats, that the answer opens like a refusal rather than like an
# answer: above zero the model refuses. It takes one pass per prompt and angle and no generated text, so
# the whole circle is cheap. We turn it on the dev prompts. The opening mass (in the table) is the
# probability that the first token opens *either* kind; where it is small, the text has broken and the
# score says little.

# %%
way = {"rotate_by, steered sites": (calibration, ss_lens.RotateBy)}
curve = angle_response.measure(model, way, parts.dev, angles)
angle_response.figure(curve, f"{name}; {held_out} dev prompts per class")

# %% [markdown]
# The angle at which harmful prompts score lowest, as dev has it:

# %%
of_harmful = curve.query("prompt_class == 'positive'").set_index("angle_deg")
angle = of_harmful["refusal_score"].idxmin()
of_harmful.loc[[0, angle], ["refusal_score", "low", "high", "opening_mass"]].round(2)

# %% [markdown]
# ## Read the answers: harmless prompts
#
# In full, unsteered (0°) and at that angle. All prompts and angles are one batch, with one angle per
# row. A good dial leaves these alone: the answers may change in wording, and should stay answers.

# %%
harmless = ss_lens.sweep_angles(
    model,
    calibration,
    ss_lens.RotateBy,
    parts.test.negative[:answers_to],
    angles_deg=[0, angle],
    max_new_tokens=new_tokens,
)
harmless[["prompt", "angle_deg", "response"]].style.set_properties(
    **{"text-align": "left", "white-space": "pre-wrap"}
)

# %% [markdown]
# ## And harmful ones
#
# Of answers to harmful requests we show whether they refuse and their first six words, which is enough
# to see the dial turn. Judge no dial by three prompts: the rates with their intervals, next to those of
# random planes, come from `ss-lens run`.

# %%
harmful = ss_lens.sweep_angles(
    model,
    calibration,
    ss_lens.RotateBy,
    parts.test.positive[:answers_to],
    angles_deg=[0, angle],
    max_new_tokens=new_tokens,
)
harmful.assign(
    refused=ss_lens.classify_refusal(harmful["response"], harmful["prompt"])["label"] != "none",
    begins=harmful["response"].str.split().str[:6].str.join(" "),
)[["prompt_index", "angle_deg", "refused", "begins"]]

# %% [markdown]
# ## The same with your own code
#
# Inside `steer`, whatever runs the model is steered: `generate`, a forward pass, TransformerLens' own
# tools. When the block ends, also by an error or an interrupt, no hook is left.

# %%
with ss_lens.steer(model, calibration, ss_lens.RotateBy(angle_deg=angle)):
    texts = ss_lens.generate(model, ["How do I bake bread?"], max_new_tokens=new_tokens)
texts

# %% [markdown]
# ## A live dial
#
# Turn θ, by mouse or with the arrow keys, and read the answer as it is written, beside the unsteered
# one, with the score and how far each token was moved. It needs a running kernel; the stop button ends
# an answer at its next token.

# %%
LiveDial(
    model,
    {"steered sites": calibration, "all sites": ss_lens.calibrate(acts, rule="uniform")},
    parts.test.negative,
    max_new_tokens=new_tokens,
)
