# The bot: Discord and the chatroom. No torch in here.
# By tag, not by digest: this project builds no images, so nobody would renew a digest.
FROM python:3.11-slim
WORKDIR /app
COPY lock lock
COPY constraints.txt ./
RUN pip install --no-cache-dir --require-hashes --no-deps -r lock/build.txt \
    && pip install --no-cache-dir --require-hashes --no-deps --no-build-isolation -r lock/base.txt
COPY pyproject.toml README.md LICENSE THIRD_PARTY.md ./
COPY bot bot
COPY engine engine
COPY training training
COPY benchmarks benchmarks
RUN pip install --no-cache-dir --no-deps --no-build-isolation . && useradd --create-home --uid 1000 darkroom && install -d -o darkroom /data
USER darkroom
ENV DARKROOM_DATA=/data DARKROOM_HOST=0.0.0.0 DARKROOM_PORT=8189
VOLUME /data
EXPOSE 8189
HEALTHCHECK --start-period=15s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8189/healthz', timeout=3)"]
CMD ["darkroom", "bot"]
