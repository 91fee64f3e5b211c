"""The paper as one command: a preset over the sweep engine, with controls that the paper lacks."""

from __future__ import annotations

from pathlib import Path

from ss_lens.activations.store import Store
from ss_lens.core.checks import check_is, check_path
from ss_lens.datasets.contrastive import ContrastiveDataset
from ss_lens.experiments.answers import cut_answers
from ss_lens.experiments.paper.choosing import answer_on_test, choose
from ss_lens.experiments.paper.clock import Clock
from ss_lens.experiments.paper.facts import activations_of, facts
from ss_lens.experiments.paper.folder import FINISHED, finish
from ss_lens.experiments.paper.judged import judged_answers
from ss_lens.experiments.paper.measured import Measured
from ss_lens.experiments.paper.plan import FULL, PaperConfig
from ss_lens.experiments.paper.stages import Work
from ss_lens.experiments.paper.tables import write_tables
from ss_lens.judges import check_ready, read_judge


def run_paper(
    config: PaperConfig,
    dataset: ContrastiveDataset,
    folder: Path | str,
    *,
    store: Store | None = None,
) -> Path:
    """Measure everything and write the tables; stopped at any moment, the same call resumes.

    Angles and strengths are chosen on dev alone, and everything else is reported on test. Prompts
    and answers stay in ``folder``; its tables hold numbers only. When these are written, answers to
    harmful prompts are cut to their first six words, beside which their scores are kept. The same
    call then still measures nothing again; where whole texts are needed, for a judge or to be kept,
    they are written again.

    Args:
        config: the model and how much.
        dataset: of which the first prompts of each class are taken, as many as the size needs.
        folder: new, empty, or of an earlier run on the same prompts.
        store: of activations; ``None`` is the user's store.

    Returns:
        The folder of the tables.

    Raises:
        UserError: a dataset that cannot be split so, a folder with something else in it, a model
            without discriminative sites, or what :func:`ss_lens.run_sweep` raises.
    """
    check_is("config", config, (PaperConfig,), "a PaperConfig(model=...)")
    check_is("dataset", dataset, (ContrastiveDataset,), "a dataset from load_dataset(...)")
    check_path("folder", folder)
    if not (Path(folder) / FINISHED).exists():
        for text in config.judges:
            check_ready(read_judge(text))
    work = Work.prepared(config, dataset, Path(folder), Store() if store is None else store)
    clock = Clock()
    with clock.stage("capture and the method's sites"):
        plan = work.planned()
    if config.judges or config.keep_answers:
        work.have_whole_answers(("dev", "test") if config.keep_answers else ("test",))
    with clock.stage("scan of the angles on dev"):
        scan, others = work.scan(plan)
    with clock.stage("answers on dev"):
        chosen = choose(work, plan, scan)
    with clock.stage("answers on test"):
        tested = answer_on_test(work, chosen)
    (full,) = (made for made in chosen if made.variant.name == FULL and made.table == "methods")
    with clock.stage("random planes and site sets"):
        nulls = work.nulls(full)
    with clock.stage("capability"):
        items = work.capability(chosen)
    judged = judged_answers(config, chosen, tested)
    measured = Measured(scan, others, chosen, tested, nulls, items, judged, facts(work))
    tables = write_tables(config, measured, work.folder)
    finish(config, activations_of(work), work.folder)
    if not config.keep_answers:
        cut_answers(work.cells, work.harmful_tokens())
    return tables
