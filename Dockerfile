# One image for every role: `skipnet serve`, `skipnet train` and the other verbs.
#
#     docker build --tag skipnet .
#
# It runs on CPUs and on NVIDIA GPUs. Without CUDA libraries it is much smaller: name the index of PyTorch's CPU wheels,
# which PyTorch's installation page lists.
#
#     docker build --build-arg PIP_EXTRA_INDEX_URL=… --tag skipnet .

FROM python:3.11-slim-bookworm AS build

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/skipnet
ENV PATH=/opt/skipnet/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

WORKDIR /build
ARG PIP_EXTRA_INDEX_URL
COPY pyproject.toml deploy/tools/requirements.py ./
RUN python requirements.py torch > torch.txt && pip install --requirement torch.txt
RUN python requirements.py > others.txt && pip install --requirement others.txt

COPY README.md ./
COPY service service
COPY models models
# The shipped checkpoints are in /models. Headers and static libraries are only for compilers.
RUN mv models/repository /repository \
    && pip install --no-deps . \
    && python -P -m models.engines.native.build \
    && pip uninstall --yes pip setuptools \
    && rm -rf /opt/skipnet/lib/python3*/site-packages/torch/include \
    && find /opt/skipnet -name '*.a' -delete

FROM python:3.11-slim-bookworm

# /models: checkpoints. A new volume starts with the shipped ones. /data: data sets. /runs: training runs.
RUN groupadd --gid 10001 skipnet \
    && useradd --uid 10001 --gid skipnet --no-log-init --create-home skipnet \
    && install --directory --owner skipnet --group skipnet /models /data /runs
COPY --from=build /opt/skipnet /opt/skipnet
COPY --from=build --chown=10001:10001 /repository /models

ENV PATH=/opt/skipnet/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/data/huggingface \
    HF_HUB_DISABLE_TELEMETRY=1 \
    HF_UPDATE_DOWNLOAD_COUNTS=0 \
    ORT_DISABLE_TELEMETRY=1 \
    SKIPNET_HOST=0.0.0.0 \
    SKIPNET_MODEL_REPOSITORY=/models
USER 10001:10001
# The default folder of a run, runs/<arch>, is then in the volume.
WORKDIR /
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('SKIPNET_PORT', '8000') + '/health/live', timeout=4)"]
ENTRYPOINT ["skipnet"]
CMD ["serve"]
