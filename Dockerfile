# Guerdon's server, for `docker run -e GUERDON_POSTGRES_DSN=... -e GUERDON_REDIS_URL=... -p 7450:7450 guerdon`.
# The embedded PostgreSQL and Valkey are left out: in a container the engines have containers of their own.

FROM python:3.13.9-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# First what changes rarely, so that an edit of the code installs no dependency again.
COPY requirements/build.txt requirements/runtime.txt requirements/
RUN python -m venv --without-pip /opt/guerdon \
 && python -m pip --python /opt/guerdon/bin/python install --require-hashes -r requirements/runtime.txt \
 && python -m pip install --require-hashes -r requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY clients/python clients/python
COPY server server
# Real wheels, not editable: the image that is kept has no source folder.
RUN python -m pip wheel --no-deps --no-build-isolation --no-index --wheel-dir /wheels ./clients/python . \
 && python -m pip --python /opt/guerdon/bin/python install --no-deps --no-index /wheels/*.whl

FROM python:3.13.9-slim-bookworm
COPY --from=build /opt/guerdon /opt/guerdon
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin guerdon
USER 10001
# On all addresses of the container; which of them the world sees is decided where it is run.
ENV PATH=/opt/guerdon/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    GUERDON_GRPC_HOST=0.0.0.0 GUERDON_METRICS_HOST=0.0.0.0
# gRPC, metrics
EXPOSE 7450 7451
# Finish what is in flight, then exit 0.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 CMD ["guerdon", "health"]
ENTRYPOINT ["guerdon"]
CMD ["serve"]
