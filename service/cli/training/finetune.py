"""The run of `skipnet train --recipe finetune`: from a pretrained network to a published one with gates.

Under torchrun all processes train; the first one checks the images, measures and publishes.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from models import SHIPPED
from models.errors import UserError
from service.cli.training.publication import publish_once

if TYPE_CHECKING:
    from models.finetuning.comparison import Comparison
    from models.finetuning.plan import Plan
    from service.cli.training.train import Train

TITLES = ("dense network", "gates alone", "all weights")


def finetune(options: "Train") -> None:
    """Check the images, train, measure and publish."""
    from models.finetuning.plan import make_plan
    from models.finetuning.result import write_result
    from models.model_repository import require_labels
    from models.training.distributed.group import is_first
    from models.training.interruption import stop_on_signals

    if options.stages or options.teacher:
        raise UserError("recipe finetune sets its stages and its teacher: leave out --stages and --teacher")
    if options.data is None:
        raise UserError("recipe finetune trains on a folder of images: name it with --data")
    name = options.model or model_name(options.data)
    repository = options.model_repository or SHIPPED
    output = options.output or Path("runs") / name
    plan = make_plan(options.model_copy(update={"output": output, "init": options.import_start(output)}))
    # An error here comes before the training, not after it.
    require_labels(repository, name, plan.train.classes)
    with stop_on_signals() as stop:

        def check() -> None:
            stop.check(plan.options.folder)

        train_all(options, plan, check)
        if not is_first():
            return
        print("measuring the dense and the routed network …", flush=True)
        comparison = write_result(plan, options.max_loss / 100, check)
    publish_result(options, plan, comparison, repository, name)


def train_all(options: "Train", plan: "Plan", check: Callable[[], None]) -> None:
    """Run or resume the three trainings of a plan. ``check`` raises an exception after a signal."""
    from models.training.distributed.group import is_first, wait_for_all
    from models.training.setup.job import make_job
    from models.training.state import is_finished

    if is_first():
        prepare_training(options, plan)
    metrics = options.make_metrics(plan.trainings[-1].arch) if is_first() else None
    for title, each in zip(TITLES, plan.trainings, strict=True):
        # The first process has discarded old states, or has written the checkpoint that this training starts from.
        wait_for_all()
        check()
        job = make_job(each)
        if metrics and not (options.resume and is_finished(each.folder)):
            print(f"{title}: {each.arch}, {each.epochs} epochs, batch {each.batch}, on {job.device}", flush=True)
        # If the training is finished, this only compares the options.
        options.run_job(job, metrics, title)


def prepare_training(options: "Train", plan: "Plan") -> None:
    """Check the images and discard the states of an earlier run, or say that nothing is left to resume."""
    from models.finetuning.folder_check import check_images
    from models.training.state import discard_state, is_finished

    if options.resume and all(is_finished(each.folder) for each in plan.trainings):
        print(f"nothing to train: the run in {plan.options.folder} is finished")
    elif not options.resume:
        for each in plan.trainings:
            discard_state(each.folder)
        print(*check_images(plan.train, plan.validation, plan.spec.resize, options.skip_damaged), sep="\n")


def publish_result(options: "Train", plan: "Plan", comparison: "Comparison", repository: Path, name: str) -> None:
    """Print the comparison with the dense network, and publish the result if it keeps the limits.

    Raises UserError if the network is not published. The message says what to change.
    """
    from models.evaluation.fixed_routes import describe_routes
    from models.model_card.card import write_card

    print(comparison.describe(), describe_routes(comparison.routed.macs, comparison.routed.fixed_routes), sep="\n")
    print("checkpoint:", plan.result)
    problems = comparison.problems(options.max_loss / 100)
    if problems and not options.publish_anyway:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise UserError(f"the network was not published:\n{listed}\nTo publish it as it is: --resume --publish-anyway")
    for problem in problems:
        print("warning:", problem)
    folder, message = publish_once(plan.result, repository, name, options.resume)
    print(f"{message}: {folder}", f"card: {write_card(folder)}", sep="\n")


def model_name(data: Path) -> str:
    """Return a model's name from the name of a folder of images."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", data.resolve().name).lstrip("_.-")
    return name[:100] or "photos"
