# One image for every service of docker-compose.yml.
#
#   docker build -t fedleak:cpu .
#   docker build -t fedleak:gpu --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
FROM python:3.11-slim-bookworm

# torch and torchvision must be a pair, and of the same build: torchvision does not load beside a torch of another one.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH=2.14.1
ARG TORCHVISION=0.29.1
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" \
    "torch==$TORCH" "torchvision==$TORCHVISION"

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY fedleak fedleak
RUN pip install --no-cache-dir . && python -c "import torchvision, opacus, fedleak.apps.serverapp" && rm -rf /src/*

# Whoever runs a container may be any user; all that is written goes to volumes and to /tmp.
ENV HOME=/tmp \
    FLWR_HOME=/tmp/flwr \
    FLWR_TELEMETRY_ENABLED=0 \
    FLWR_DISABLE_UPDATE_CHECK=1 \
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 \
    MPLBACKEND=Agg \
    PYTHONUNBUFFERED=1
WORKDIR /tmp
USER 1000:1000
CMD ["fedleak", "--help"]
