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
# # A behaviour of your own
#
# Two lists of prompts are all that a calibration needs. Here they are written into the notebook: the
# same twelve requests, once in a formal tone and once in a casual one. The question is whether the
# model's *own tone* can be turned by what it makes of the user's.
#
# Nothing here is about refusal. With a word on how its answers are scored, the two lists become a
# *behaviour*: a value that everything takes which follows refusal unless told otherwise.

# %%
import os

import pandas as pd

import ss_lens
from analyses import confounds
from analyses.run_figures import sign_agreement
from analyses.widget import StoredDial
from ss_lens.behaviours import Behaviour, Openings, Phrases
from ss_lens.models.sources import DEFAULT_MODEL
from ss_lens.scoring.coherence import coherence

# %% [markdown]
# ## Two lists
#
# Good pairs differ in the behaviour and in nothing else: topic, length and form should match, or the
# direction encodes those. Twelve pairs are few. They suffice to look; for a result use fifty or more.

# %%
formal = [
    "Could you please explain why the sky is blue?",
    "I would be grateful for advice on preparing for an interview.",
    "Would you kindly describe how bread is baked?",
    "Might I ask which vegetables one should plant in spring?",
    "Please be so kind as to recommend a suitable novel.",
    "I should like to understand how vaccines function.",
    "Could you kindly suggest an appropriate gift for a colleague?",
    "I would appreciate an explanation of how tides arise.",
    "Would you please advise me on improving my sleep?",
    "May I enquire how one removes a coffee stain?",
    "I respectfully request a summary of the water cycle.",
    "Could you please outline a journey through Portugal?",
]
casual = [
    "hey, so like why's the sky blue lol",
    "yo any tips for my job interview tmrw??",
    "sooo how do ya bake bread then",
    "hey what veggies should i stick in the ground in spring",
    "gimme a good book to read pls",
    "ok but how do vaccines even work tho",
    "need a cool gift for a guy at work, ideas?",
    "wait what's up with tides, how do they happen",
    "dude i can't sleep, help me out",
    "ugh spilled coffee on my shirt, what now",
    "so what's the deal with the water cycle",
    "lol plan me a trip thru portugal",
]

# %% tags=["parameters"]
angles = range(0, 360, 60)
held_out = 2
new_tokens = 32

# %%
name = os.environ.get("SS_LENS_NOTEBOOK_MODEL", DEFAULT_MODEL)
model = ss_lens.load_model(name)
data = ss_lens.load_dataset(positive=formal, negative=casual, paired=True)
parts = data.split(dev=held_out, test=held_out, seed=0)
data

# %% [markdown]
# ## How an answer is scored
#
# Two ways, and one is enough. *Openings* say how answers begin on either side; they are compared by
# log-odds of the first token, in one pass and without an answer, so that angles can be chosen by them.
# *Phrases* read the answer itself. In a file, `tone.yaml`, the same is what `ss-lens run --behaviour
# tone.yaml` takes.

# %%
tone = Behaviour(
    "formality",
    data,
    openings=Openings(
        positive=("Certainly", "Dear", "To", "It is", "I would"),
        negative=("Hey", "Sure", "Oh", "Yeah", "So"),
    ),
    shown=Phrases(
        positive=("certainly", "please", "kindly", "would", "recommend", "therefore", "one should"),
        negative=("hey", "yeah", "cool", "gonna", "you're", "it's", "don't", "let's", "awesome"),
    ),
)
tone

# %% [markdown]
# The unsteered model, asked formally and casually. Above zero it is about to open formally. The
# opening mass is the probability that either kind of opening has: where it is small, as it is for
# openings that the model hardly uses, the score says little.

# %%
asked = {label: tone.score(model, getattr(parts.test, label)) for label in ("positive", "negative")}
pd.concat(asked, names=["prompts"]).reset_index("prompts").round(3)

# %% [markdown]
# ## Could something simpler tell them apart?
#
# Before any activation: how well do length and spelling separate the two lists on prompts that were
# left out? Tone *is* spelling and length to a good part, so expect high numbers here, and be careful with
# what you claim: the direction may be "capital letters" as well as "formal".

# %%
acts = ss_lens.capture(model, data)
apart = confounds.measure(data, acts, n_folds=3, n_resamples=200)
confounds.figure(apart, f"{name}; 12 formal and 12 casual prompts")

# %% [markdown]
# ## Calibrate
#
# The first list is the positive class. `b1` then points from casual to formal.

# %%
train = ss_lens.capture(model, parts.train)
calibration = ss_lens.calibrate(train)
calibration

# %% [markdown]
# At which sites are the two tones on opposite sides? On all twelve pairs, most of which the calibration
# has seen: an optimistic picture.

# %%
sign_agreement.figure(sign_agreement.measure(acts, calibration, n_resamples=500))

# %% [markdown]
# ## Turn it
#
# Neutral questions, unsteered and at angles around the circle. `rotate_to` turns every token to one
# absolute angle and `rotate_by` turns it further by an angle. For a tone, an absolute angle is often the
# stronger dial: 0° is the formal end of `b1`, 180° the casual one. `unsteered=True` puts the model's own
# answer beside them, since no absolute angle is the unsteered model.

# %%
questions = ["How do I make tea?", "What should I do on a rainy day?"]
turned = {
    operator.__name__: ss_lens.sweep_angles(
        model,
        calibration,
        operator,
        questions,
        angles,
        max_new_tokens=new_tokens,
        unsteered=operator is ss_lens.RotateTo,
    )
    for operator in (ss_lens.RotateTo, ss_lens.RotateBy)
}
answers = pd.concat(turned, names=["operator"]).reset_index("operator").reset_index(drop=True)

# %% [markdown]
# ## Read the texts, before and after
#
# In full; reading is the first score. On the default model little of the tone turns, and some angles
# break the text. On the 1.5B model compare 0° with 180°.

# %%
left = {"text-align": "left", "white-space": "pre-wrap"}
answers.query("prompt == @questions[0] and operator == 'RotateTo'")[
    ["angle_deg", "response"]
].style.set_properties(**left)

# %% [markdown]
# ## Read them by rule
#
# The behaviour's phrases on every answer: from −1, casual words alone, to 1, formal ones alone. Beside it
# the scores of text, without which a count says little: an answer that loops or is cut short has no tone.
# Two questions prove nothing; the column shows how you would look at two hundred.

# %%
texts = answers["response"].tolist()
read = tone.read(answers["prompt"].tolist(), texts)
scored = answers.assign(formal=read["text_score"].to_numpy()).join(coherence(texts))
columns = ["formal", "repetition", "compression_ratio"]
scored.groupby(["operator", "angle_deg"], dropna=False)[columns].mean().round(2)

# %% [markdown]
# ## A dial over what was measured
#
# The answers are a table now, and a table needs no model. (Answers to the positive class of a dataset
# are folded away in this view, in case it is the harmful one; plain questions are not.)

# %%
StoredDial(answers)

# %% [markdown]
# ## What is not here
#
# * The whole job: `ss_lens.run_main_job(model, tone, "runs/tone")`, or `ss-lens run --behaviour tone.yaml`,
#   chooses angles on dev by the openings, answers test prompts there, compares with random planes and
#   with system prompts, and writes a report. It needs more prompts than twelve.
# * A judge in place of phrases, multiple choice, and what turns which way:
#   [a behaviour of your own](../docs/how-to/own-behaviour.md).
# * The controls are one argument away and matter as much as for refusal: the same questions with
#   `plane=ss_lens.RandomPlane(seed=0)`, which should not turn the tone, and if it does, neither did you.

# %%
control = ss_lens.calibrate(
    train,
    plane=ss_lens.RandomPlane(seed=0),
    rule=ss_lens.Explicit.of(*calibration.selected_sites),
)
ss_lens.sweep_angles(
    model, control, ss_lens.RotateTo, questions[:1], [0, 180], max_new_tokens=new_tokens
)[["angle_deg", "response"]].style.set_properties(**left)
