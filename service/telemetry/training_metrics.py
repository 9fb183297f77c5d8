"""Prometheus metrics of a training run."""

from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, start_http_server

if TYPE_CHECKING:
    from models.training.recipes import Recipe
    from models.training.state import Progress

RUN = ("architecture", "stage")


class TrainingMetrics:
    """The metrics of one run, in their own registry. This is a `models.training.types.Watcher`."""

    def __init__(self, architecture: str) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.architecture = architecture

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"skipnet_training_{name}", text, (*RUN, *labels), registry=registry)

        self.images = Counter("skipnet_training_images_total", "Images processed in training.", RUN, registry=registry)
        self.steps = Counter("skipnet_training_steps_total", "Steps done.", RUN, registry=registry)
        self.progress = gauge("progress_ratio", "Steps done in the stage.")
        self.rate = gauge("learning_rate", "Learning rate of the last step.")
        self.epoch = gauge("epoch", "Epochs done in the stage.")
        self.loss = gauge("loss", "Mean training loss of the last epoch.")
        self.accuracy = gauge(
            "accuracy_ratio", "Accuracy in the last epoch, on training and on validation images.", "split"
        )
        self.computation = gauge("computation_ratio", "Share of blocks executed, on the same images.", "split")
        self.skips = gauge("skip_ratio", "Share of validation images that skip a block.", "block")

    def serve(self, host: str, port: int) -> str:
        """Serve the metrics in a thread and return the address. Port 0 is replaced by a free port."""
        server, _ = start_http_server(port, host, self.registry)
        return f"http://{host}:{server.server_port}/metrics"

    def stepped(self, recipe: "Recipe", step: int, steps: int, count: int, rate: float, progress: "Progress") -> None:
        del progress  # Reading the sums would make the host wait for the device.
        run = self.architecture, recipe.stage
        self.images.labels(*run).inc(count)
        self.steps.labels(*run).inc()
        self.progress.labels(*run).set(step / steps)
        self.rate.labels(*run).set(rate)

    def logged(self, record: dict[str, Any]) -> None:
        run = self.architecture, record["stage"]
        self.epoch.labels(*run).set(record["epoch"])
        self.loss.labels(*run).set(record["loss"])
        self.accuracy.labels(*run, "train").set(record["train_accuracy"])
        self.accuracy.labels(*run, "held_out").set(record["accuracy"])
        self.computation.labels(*run, "train").set(record["train_computation"])
        self.computation.labels(*run, "held_out").set(record["computation_percentage"] / 100)
        for block, share in enumerate(record["skip_rate"], start=1):
            self.skips.labels(*run, str(block)).set(share)
