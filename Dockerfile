# docker build -t gpubench . && docker run --rm -v "$PWD/runs:/runs" gpubench
# For CUDA: --build-arg EXTRAS=cuda --build-arg TORCH=auto, and docker run --gpus all
FROM python:3.12-slim
ARG EXTRAS=cpu
ARG TORCH=cpu
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/* \
 && pip install --no-cache-dir uv
COPY . /src
RUN uv pip install --system --no-cache --torch-backend "$TORCH" "/src[$EXTRAS]" && rm -rf /src \
 && useradd --create-home gpubench && mkdir /runs && chown gpubench /runs
USER gpubench
WORKDIR /runs
ENTRYPOINT ["gpubench"]
CMD ["run", "quick", "-o", "/runs/quick"]
