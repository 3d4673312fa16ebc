# One worker: one device. For an NVIDIA card run it with `--gpus` or the `gpu` lines in docker-compose.yml.
FROM python:3.11-slim
WORKDIR /app
COPY pinned.txt constraints.txt ./
RUN sed '/^simcord/,$d' pinned.txt > /tmp/pinned.txt && pip install --no-cache-dir --require-hashes --no-deps -r /tmp/pinned.txt
COPY pyproject.toml README.md LICENSE THIRD_PARTY.md ./
COPY bot bot
COPY engine engine
COPY training training
COPY benchmarks benchmarks
RUN pip install --no-cache-dir -c constraints.txt '.[engine]' && useradd --create-home --uid 1000 darkroom && install -d -o darkroom /data
USER darkroom
ENV DARKROOM_DATA=/data
VOLUME /data
CMD ["darkroom", "engine"]
