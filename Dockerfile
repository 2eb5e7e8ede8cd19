# Detection in a container, without a GPU or with one:
#
#     docker build -t ifkd .
#     docker build -t ifkd:gpu --build-arg EXTRAS=gpu,report .
#     docker run --rm --gpus all --volume "$PWD:/data" ifkd:gpu detect bundle scene.tif --out detections
#
# The wheels contain CUDA, so that the host needs only NVIDIA's driver and container toolkit.
# For training: --build-arg EXTRAS=cpu,export,report
FROM python:3.11-slim-bookworm

# GDAL in rasterio's wheel needs libexpat.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libexpat1 \
    && rm -rf /var/lib/apt/lists/*

ARG EXTRAS=cpu,report
WORKDIR /opt/ifkd
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY ifkd ifkd
COPY export export
COPY deploy deploy
RUN pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]"

USER 1000
WORKDIR /data
ENTRYPOINT ["ifkd"]
