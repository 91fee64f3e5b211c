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
# # Where does it live?
#
# A calibration answers with a plane and a list of sites. This notebook asks how far to believe it: where
# in the network the two classes part, whether that would come out again with other prompts, and whether
# something duller than the behaviour could explain it. Then it intervenes: reading a class off a site does
# not mean that the model uses it there, so we steer one site at a time.

# %%
import os

import ss_lens
from analyses import confounds, logit_lens, site_effects, stability, token_projections
from analyses.run_figures import cosine_heatmap, norm_growth, sign_agreement
from ss_lens.models.sources import DEFAULT_MODEL, default_dataset

# %% tags=["parameters"]
prompts_per_class = 64
held_out = 8
resamples = 200
few = 3  # prompts per class for what takes many passes
angle = 180

# %%
name = os.environ.get("SS_LENS_NOTEBOOK_MODEL", DEFAULT_MODEL)
model = ss_lens.load_model(name)
data = ss_lens.load_dataset(default_dataset(name)).head(prompts_per_class)
parts = data.split(dev=held_out, test=held_out, seed=0)
acts = ss_lens.capture(model, parts.train)
unseen = ss_lens.capture(model, parts.test)
calibration = ss_lens.calibrate(acts)
calibration

# %% [markdown]
# ## By depth: on which side is each class?
#
# The mean projection of each class onto `b1`, site by site, on prompts that the calibration has not
# seen. Early sites hold the two classes on the *same* side: whatever `b1` means there, it does not
# divide them, and rotating there would move both alike. Selective Steering leaves these sites alone.

# %%
sides = sign_agreement.measure(unseen, calibration)
sign_agreement.figure(sides)

# %% [markdown]
# The same as numbers: of the steered sites, at how many do unseen prompts lie on opposite sides?

# %%
sides.query("selected").groupby("stream")[["opposite"]].agg(["sum", "size"])

# %% [markdown]
# ## One direction, or several?
#
# The cosine between the proposals of every two sites. Where the whole square is bright one direction
# serves everywhere; a block structure means that the behaviour is written anew somewhere.

# %%
cosine_heatmap.figure(cosine_heatmap.measure(calibration))

# %% [markdown]
# ## How large is what we turn?
#
# Norms grow with depth in the stream and hardly at the norm outputs, which are what we rotate. A
# rotation by θ moves an activation by 2 sin(θ/2) of its part in the plane, so depth enters only by
# that part.

# %%
norm_growth.figure(norm_growth.measure(acts))

# %% [markdown]
# ## Would other prompts have given the same?
#
# The whole calibration again on resampled prompts. Above, each class's mean with the interval over whole
# recalibrations (wide) and over prompts alone (narrow); below, in how many draws a site is selected,
# beside shuffled labels. A site that is selected in half of the draws is a coin toss.

# %%
stable = stability.measure(acts, n_resamples=resamples)
stability.site_figure(stable.sites, f"{name}; {resamples} draws of each kind")

# %% [markdown]
# And the plane: principal angles between each draw's plane and that of all prompts, against fewer
# prompts, shuffled labels and planes that are drawn at random.

# %%
stability.plane_figure(stable.draws, f"{name}; {resamples} draws of each kind")

# %% [markdown]
# In words:

# %%
print(*stability.findings(stable.draws, stable.sites), sep="\n")

# %% [markdown]
# ## Could it be something else?
#
# If the length or the spelling of a prompt told the classes apart as well as the activations do, the
# direction might be about those. Classifiers on the surface of the prompts, by cross-validation, beside
# the activations read in the same way.

# %%
apart = confounds.measure(parts.train, acts, n_folds=3, n_resamples=resamples)
confounds.figure(apart, f"{name}; {default_dataset(name)}")

# %%
print(*confounds.findings(apart), sep="\n")

# %% [markdown]
# ## At which layer does the model decide?
#
# Everything above reads the classes. From here on we intervene. The logit lens takes the stream after each
# block, passes it through the model's last norm and unembedding, and asks how it would open its answer if
# the model ended there: like a refusal (above zero) or like an answer. Steered and unsteered curves part
# where steering takes effect. Early layers are not made to be read so; where the openings hold little of
# the probability, the score says little.

# %%
operator = ss_lens.RotateBy(angle)
lens = logit_lens.measure(model, calibration, parts.test.head(few), [angle], n_resamples=resamples)
logit_lens.figure(lens, f"{name}; {few} test prompts per class")

# %% [markdown]
# ## Which site does it?
#
# Each steered site alone, against the unsteered model; and each left out, against all. The two need not
# agree: a site that does much alone may add nothing to the others, since later sites see what earlier ones
# have turned. Effects of single sites do not add up.

# %%
effects = site_effects.measure(
    model, calibration, operator, parts.test.head(few), draws=0, n_resamples=resamples
)
site_effects.figure(effects, f"{name}; {few} test prompts per class; rotate_by {angle}°")

# %%
print(*site_effects.findings(effects), sep="\n")

# %% [markdown]
# ## And at which tokens?
#
# One harmless prompt with its answer, token by token: where each activation lies in the plane, unsteered
# and steered. Arrows to the right point along `b1`. The calibration saw the last token of prompts only;
# what the rotation does to all the others is seen here.

# %%
tokens = token_projections.measure(model, calibration, operator, parts.test.head(1))
token_projections.figure(tokens.query("prompt_class == 'negative'"), name)

# %% [markdown]
# ## What this does not show
#
# A site that matters at this angle, on these prompts, in this plane. Whether another plane at the same sites
# would have done the same is what the controls of `02_ablations` and of `ss-lens run` ask.
