# llama3-8b: transformers 5.23.0 on python:3.12-slim-bookworm, CUDA 13.
# Rendered by builder from builder.yaml; change that file, not this one. Steps: steps/ beside this file.

# base: Python with its whole standard library, certificates, the engine's system libraries, the user.
FROM python:3.12-slim-bookworm AS base
RUN --mount=type=bind,source=steps,target=/steps \
    --mount=type=secret,id=ca --mount=type=secret,id=apt_sources --mount=type=secret,id=apt_auth \
    sh /steps/apt ca-certificates libgomp1 \
 && sh /steps/python 3.12 \
 && sh /steps/user

# wheels: the packages of builder's own runtime, then the engine's, in one virtual environment without pip.
FROM base AS wheels
RUN --mount=type=bind,source=steps,target=/steps \
    --mount=type=secret,id=ca --mount=type=secret,id=apt_sources --mount=type=secret,id=apt_auth \
    sh /steps/apt binutils \
 && python3 -m venv /opt/pip \
 && python3 -m venv --without-pip /opt/venv
RUN --mount=type=bind,source=steps,target=/steps \
    --mount=type=bind,source=requirements,target=/requirements \
    --mount=type=bind,source=wheelhouse,target=/wheelhouse \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=ca --mount=type=secret,id=pip_conf --mount=type=secret,id=netrc \
    sh /steps/wheels index /requirements/runtime.txt \
 && find /opt/venv -type f >/opt/runtime.list
RUN --mount=type=bind,source=steps,target=/steps \
    --mount=type=bind,source=requirements,target=/requirements \
    --mount=type=bind,source=wheelhouse,target=/wheelhouse \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=ca --mount=type=secret,id=pip_conf --mount=type=secret,id=netrc \
    sh /steps/wheels index /requirements/engine.txt

# trim: drop what serving never reads, strip, compile what an import touches, split into two layers: one for all engines.
FROM wheels AS trim
RUN --mount=type=bind,source=steps,target=/steps \
    /opt/venv/bin/python /steps/trim.py /opt/runtime.list 315532800 torch,transformers,transformers.cli.transformers,transformers.cli.serving.server transformers/testing_utils.py torch/include torch/share 'torch/bin/protoc*' torch/test 'nvidia/*/include' 'nvidia/*/*/include'

# shipped: builder's own runtime, compiled for this Python.
FROM base AS shipped
COPY builder /out/opt/builder/builder
RUN python3 -m compileall -q --invalidation-mode unchecked-hash -s /out -p / /out \
 && find /out -exec touch -h -d @315532800 {} +

# runtime: base, the layers, the environment.
FROM base AS runtime
COPY --from=trim /out/runtime/ /
COPY --from=trim /out/engine/ /
COPY --from=shipped /out/ /
ENV PATH="/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
    PYTHONPATH="/opt/builder" \
    PYTHONDONTWRITEBYTECODE="1" \
    PYTHONUNBUFFERED="1" \
    HOME="/home/app" \
    XDG_CACHE_HOME="/home/app/.cache" \
    CUDA_MODULE_LOADING="LAZY" \
    NVIDIA_VISIBLE_DEVICES="all" \
    NVIDIA_DRIVER_CAPABILITIES="compute,utility" \
    NVIDIA_REQUIRE_CUDA="cuda>=13.0" \
    CUDA_CACHE_PATH="/home/app/.cache/cuda" \
    HF_HUB_OFFLINE="1" \
    HF_HUB_DISABLE_TELEMETRY="1" \
    DO_NOT_TRACK="1" \
    BUILDER_STORE="s3://llm-weights/llama3-8b" \
    BUILDER_REGION="us-west-2" \
    BUILDER_MODEL="llama3-8b" \
    BUILDER_MODELS_ROOT="/var/lib/builder/models" \
    BUILDER_ENGINE="transformers" \
    BUILDER_ENGINE_ARGS="[\"--continuous-batching\", \"--dtype\", \"bfloat16\"]" \
    BUILDER_PORT="8000" \
    BUILDER_CONTROL_PORT="8001" \
    BUILDER_QUEUE="1" \
    BUILDER_QUEUE_LIMIT="256" \
    BUILDER_WARMUP_BATCH="1,4" \
    BUILDER_WARMUP_TOKENS="128,1024" \
    PYTORCH_ALLOC_CONF="expandable_segments:True"
WORKDIR /home/app

# smoke: as the user of the final image, import the engine and the runtime. Fails the build, and final needs its report.
FROM runtime AS smoke
USER 10001:0
RUN --mount=type=bind,source=steps,target=/steps \
    /opt/venv/bin/python /steps/smoke.py /tmp/smoke.json torch transformers transformers.cli.transformers transformers.cli.serving.server

# final: what is pushed.
FROM runtime AS final
COPY --from=smoke --chmod=0444 /tmp/smoke.json /opt/builder/smoke.json
LABEL org.opencontainers.image.title="llama3-8b" \
      org.opencontainers.image.version="5.23.0" \
      org.opencontainers.image.base.name="python:3.12-slim-bookworm" \
      builder.engine="transformers 5.23.0" \
      builder.cuda="13.0" \
      builder.tool="0.1.0"
USER 10001:0
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
  CMD ["/opt/venv/bin/python", "-m", "builder.runtime", "probe", "live"]
ENTRYPOINT ["/opt/venv/bin/python", "-m", "builder.runtime"]
CMD ["serve"]
