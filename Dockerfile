# flowers-torch on CPUs; docs/containers.md shows how to run it.
#
#     docker build -t flowers-torch .                          every command
#     docker build -t flowers-torch-serve --target serve .     a server, with a health check

FROM python:3.13-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
# Versions are those that pyproject.toml allows.
# A layer of its own, which stays when only the package changes. PyPI's torch would bring 3 GB of CUDA.
# hadolint ignore=DL3013
RUN pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY flowers_torch flowers_torch
# hadolint ignore=DL3013
RUN pip install ".[serve,onnx,keras,heic,offline]"

FROM python:3.13-slim AS base
COPY --from=build /opt/venv /opt/venv
# What has to be written goes to /data: runs, and the cache of downloads. /tmp may be a small tmpfs.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    FLOWERS_TORCH_CACHE=/data/.cache \
    HF_HOME=/data/.cache/huggingface
RUN mkdir /data && chown 10001:10001 /data
WORKDIR /data
USER 10001:10001
ENTRYPOINT ["flowers-torch"]

FROM base AS serve
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["serve", "/model", "--host", "0.0.0.0"]

FROM base
CMD ["--help"]
