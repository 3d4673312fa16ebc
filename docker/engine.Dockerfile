# One worker: one device. For an NVIDIA card run it with `--gpus` or the `gpu` lines in docker-compose.yml.
# By tag, not by digest: this project builds no images, so nobody would renew a digest.
FROM python:3.11-slim
WORKDIR /app
COPY lock lock
COPY constraints.txt ./
RUN pip install --no-cache-dir --require-hashes --no-deps -r lock/build.txt \
    && pip install --no-cache-dir --require-hashes --no-deps --no-build-isolation -r lock/engine.txt
# its builds differ by device, so it has no hash here
RUN pip install --no-cache-dir -c constraints.txt torch torchvision
COPY pyproject.toml README.md LICENSE THIRD_PARTY.md ./
COPY bot bot
COPY engine engine
COPY training training
COPY benchmarks benchmarks
RUN pip install --no-cache-dir --no-deps --no-build-isolation . && useradd --create-home --uid 1000 darkroom && install -d -o darkroom /data
USER darkroom
ENV DARKROOM_DATA=/data HF_HOME=/data/hub
VOLUME /data
CMD ["darkroom", "engine"]
