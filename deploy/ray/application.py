"""The application that serve.yaml names. Ray's proxy, then an `Ingress`, then a `Classifier`."""

from ray import serve

from deploy.ray.classifier import Classifier
from deploy.ray.ingress import Ingress

app = serve.deployment(Ingress).bind(serve.deployment(Classifier).bind())
