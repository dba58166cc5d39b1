"""The parts of Knative's, KServe's and Compose's schemas that our manifests use, strictly: no other key passes.

Written down from, with the names and types there:
Knative Serving, config/core/300-resources/service.yaml (services.serving.knative.dev, v1), of which Cloud Run's
API is a subset (cloud.google.com/run/docs/reference/yaml/v1; its annotations are listed there);
KServe, config/crd/full/serving.kserve.io_inferenceservices.yaml (v1beta1);
Kubernetes' core v1 Container, Probe, SecurityContext; the Compose specification, schema/compose-spec.json.
"""

from typing import Any

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_DNS = {"type": "string", "pattern": "^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$"}
_QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|Ki|Mi|Gi)?$"}
_IMAGE = {"type": "string", "pattern": r"^[^@\s]+@sha256:[0-9a-f]{64}$"}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


_RESOURCES = _object(["cpu", "memory"], cpu=_QUANTITY, memory=_QUANTITY)
_PROBE = _object(
    ["httpGet"],
    httpGet=_object(["path", "port"], path={"type": "string", "pattern": "^/"}, port=_COUNT),
    initialDelaySeconds=_COUNT,
    periodSeconds={"type": "integer", "minimum": 1},
    timeoutSeconds={"type": "integer", "minimum": 1},
    failureThreshold={"type": "integer", "minimum": 1},
)
_CONTAINER = _object(
    ["image"],
    name=_DNS,
    image=_IMAGE,
    ports={
        "type": "array",
        "maxItems": 1,
        "items": _object(
            ["containerPort"],
            name={"enum": ["http1", "h2c"]},
            containerPort=_COUNT,
            protocol={"enum": ["TCP"]},
        ),
    },
    resources=_object(["limits"], limits=_RESOURCES, requests=_RESOURCES),
    startupProbe=_PROBE,
    readinessProbe=_PROBE,
    livenessProbe=_PROBE,
    securityContext=_object(
        [],
        runAsNonRoot={"type": "boolean"},
        runAsUser=_COUNT,
        readOnlyRootFilesystem={"type": "boolean"},
        allowPrivilegeEscalation={"type": "boolean"},
        capabilities=_object([], drop={"type": "array", "items": _TEXT}),
    ),
)
_CONTAINERS = {"type": "array", "minItems": 1, "items": _CONTAINER}
_SECONDS = {"type": "integer", "minimum": 1, "maximum": 3600}


def _service(annotations: list[str]) -> dict[str, Any]:
    return _object(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "serving.knative.dev/v1"},
        kind={"const": "Service"},
        metadata=_object(["name"], name=_DNS),
        spec=_object(
            ["template"],
            template=_object(
                ["spec"],
                metadata=_object([], annotations=_object([], **dict.fromkeys(annotations, _TEXT))),
                spec=_object(
                    ["containers"],
                    containerConcurrency=_COUNT,
                    timeoutSeconds=_SECONDS,
                    containers=_CONTAINERS,
                ),
            ),
        ),
    )


KNATIVE = _service(["autoscaling.knative.dev/min-scale", "autoscaling.knative.dev/max-scale"])
CLOUD_RUN = _service(
    [
        "autoscaling.knative.dev/minScale",
        "autoscaling.knative.dev/maxScale",
        "run.googleapis.com/startup-cpu-boost",
        "run.googleapis.com/execution-environment",
    ]
)
KSERVE = _object(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "serving.kserve.io/v1beta1"},
    kind={"const": "InferenceService"},
    metadata=_object(["name"], name=_DNS),
    spec=_object(
        ["predictor"],
        predictor=_object(
            ["containers"],
            minReplicas=_COUNT,
            maxReplicas=_COUNT,
            containerConcurrency=_COUNT,
            timeout=_SECONDS,
            containers=_CONTAINERS,
        ),
    ),
)
_TEXTS = {"type": "array", "items": _TEXT, "uniqueItems": True}
_DURATION = {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"}
COMPOSE = _object(
    ["services"],
    services={
        "type": "object",
        "additionalProperties": _object(
            ["image"],
            image=_TEXT,
            ports=_TEXTS,
            read_only={"type": "boolean"},
            tmpfs=_TEXTS,
            cap_drop=_TEXTS,
            security_opt=_TEXTS,
            mem_limit={"type": ["string", "number"]},
            cpus={"type": ["string", "number"]},
            restart={"enum": ["no", "always", "on-failure", "unless-stopped"]},
            stop_grace_period=_DURATION,
            healthcheck=_object(
                ["test"],
                test={"type": "array", "items": _TEXT},
                interval=_DURATION,
                timeout=_DURATION,
                start_period=_DURATION,
            ),
        ),
    },
)
