# mapolicy in a container. It runs the demo, or any command:
#
#     docker build -t mapolicy .                                     # CPU
#     docker build -t mapolicy:cuda --build-arg TORCH=cu128 .        # CUDA 12.8; run with --gpus all
#     docker run --rm -v mapolicy:/data mapolicy                     # the demo; a volume keeps its bundle and runs
#     docker run --rm -v "$PWD:/data" --user "$(id -u):$(id -g)" -e HOME=/tmp -e USER=me mapolicy search folder:birds
#
# What is written lies below /data, and is lost with the container unless a volume or a folder is mounted there.
# TORCH is the name of an index of PyTorch's: cpu, cu126, cu128, ...
FROM python:3.12-slim
ARG TORCH=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

RUN pip install "torch>=2.11" "torchvision>=0.26" --index-url "https://download.pytorch.org/whl/${TORCH}"
RUN --mount=type=bind,target=/src,rw pip install /src

# With a home folder: numba keeps compiled operations there, and Hugging Face what it downloads.
RUN useradd --create-home mapolicy && mkdir /data && chown mapolicy /data
USER mapolicy
WORKDIR /data
ENTRYPOINT ["mapolicy"]
CMD ["demo"]
