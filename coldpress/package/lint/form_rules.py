"""Rules on an image's form: manifest, media types, digests, sizes."""

from collections.abc import Iterator

from coldpress.package import limits
from coldpress.package.lint.rule import (
    CLOUDRUN_CONTRACT,
    ERROR,
    IMAGE_SPEC,
    LAMBDA_ERROR,
    WARNING,
    Host,
    Subject,
    rule,
)

_INDEX_ISSUE = "https://github.com/aws/aws-lambda-roadmap/issues/82"
_CONFIG_TYPES = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
_DOCKER_PLAIN = "application/vnd.docker.image.rootfs.diff.tar"
_LAYER_TYPES = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    _DOCKER_PLAIN,
)
_FOREIGN = ("nondistributable", "foreign")
_MAX_LAYERS = 127
_MAX_CONFIG_BYTES = 4 << 20
_HIDDEN_BYTES = 32 << 20


@rule(
    "image-index", LAMBDA_ERROR, "Lambda takes one manifest, not an index of images", _INDEX_ISSUE
)
def image_index(subject: Subject, _target: Host) -> Iterator[str]:
    """An index, or a layout that lists several images."""
    image = subject.image
    if image.indexes or len(image.manifests) > 1:
        yield f"{image.indexes} indexes, {len(image.manifests)} images"


@rule(
    "attestation-manifest",
    LAMBDA_ERROR,
    "Lambda refuses images with attestations; build with --provenance=false --sbom=false",
    "https://github.com/docker/buildx/issues/1509",
)
def attestation_manifest(subject: Subject, _target: Host) -> Iterator[str]:
    """BuildKit adds them by default."""
    if subject.image.attestations:
        yield f"{subject.image.attestations} attestations"


@rule(
    "media-type",
    ERROR,
    "a config or a layer has a type that the platforms do not know",
    f"{IMAGE_SPEC}/media-types.md",
)
def media_type(subject: Subject, _target: Host) -> Iterator[str]:
    """An artifact instead of an image, for example."""
    image = subject.image
    if image.config_type and image.config_type not in _CONFIG_TYPES:
        yield f"the config is {image.config_type}"
    for number, layer in enumerate(image.layers):
        known = layer.media_type in _LAYER_TYPES or _is_foreign(layer.media_type)
        if layer.digest and not known:
            yield f"layer {number + 1} is {layer.media_type or 'of no type'}"


@rule(
    "docker-uncompressed-layer",
    LAMBDA_ERROR,
    "Lambda refuses docker's type for uncompressed layers (UnsupportedImageLayerDetected)",
    "https://github.com/bazel-contrib/rules_oci/issues/777",
)
def docker_uncompressed_layer(subject: Subject, _target: Host) -> Iterator[str]:
    """Docker defines the gzip form alone; OCI's uncompressed type is taken."""
    for number, layer in enumerate(subject.image.layers):
        if layer.media_type == _DOCKER_PLAIN:
            yield f"layer {number + 1}"


@rule(
    "zstd-layer",
    {"lambda": "error", "cloudrun": "warning"},
    "nobody has shown that Lambda unpacks zstd, and this linter does not",
    CLOUDRUN_CONTRACT,
)
def zstd_layer(subject: Subject, _target: Host) -> Iterator[str]:
    """Cloud Run takes them; their files are not looked at."""
    yield from subject.noted("zstd-layer")


@rule(
    "foreign-layer",
    ERROR,
    "a layer is to be fetched from elsewhere; the platforms fetch from their registry alone",
    f"{IMAGE_SPEC}/layer.md#non-distributable-layers",
)
def foreign_layer(subject: Subject, _target: Host) -> Iterator[str]:
    """Non-distributable layers, of Windows bases for example."""
    for number, layer in enumerate(subject.image.layers):
        if _is_foreign(layer.media_type):
            yield f"layer {number + 1} is {layer.media_type}"


@rule(
    "layer-count",
    ERROR,
    f"docker and podman cannot run an image of more than {_MAX_LAYERS} layers",
    "https://github.com/moby/buildkit/issues/3067",
)
def layer_count(subject: Subject, _target: Host) -> Iterator[str]:
    """The limit is of what one mount can name."""
    if len(subject.image.layers) > _MAX_LAYERS:
        yield f"{len(subject.image.layers)} layers"


@rule(
    "unpacked-size",
    LAMBDA_ERROR,
    "Lambda takes 10 GB uncompressed, all layers together",
    "https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html",
)
def unpacked_size(subject: Subject, target: Host) -> Iterator[str]:
    """Files of every layer count, those that a later layer hides too."""
    limit = subject.limit_bytes or limits.image_bytes(target)
    if limit is not None and subject.scanned.file_bytes > limit:
        yield f"{subject.scanned.file_bytes:,} bytes, the limit is {limit:,}"


@rule(
    "digest-mismatch",
    ERROR,
    "bytes are not what their digest or size says; no registry takes them",
    f"{IMAGE_SPEC}/descriptor.md#digests",
)
def digest_mismatch(subject: Subject, _target: Host) -> Iterator[str]:
    """Of documents and of layers."""
    yield from (it for it in subject.image.mismatches if "diff_ids" not in it)
    yield from subject.noted("digest-mismatch")


@rule(
    "diff-id-mismatch",
    ERROR,
    "a layer does not unpack to what the config says; the platforms refuse it",
    f"{IMAGE_SPEC}/config.md#layer-diffid",
)
def diff_id_mismatch(subject: Subject, _target: Host) -> Iterator[str]:
    """Also a list of another length than the manifest's."""
    yield from (it for it in subject.image.mismatches if "diff_ids" in it)
    yield from subject.noted("diff-id-mismatch")


@rule(
    "broken-layer",
    ERROR,
    "a layer cannot be read to its end",
    f"{IMAGE_SPEC}/layer.md",
)
def broken_layer(subject: Subject, _target: Host) -> Iterator[str]:
    """Cut off, damaged, or not of the type that is stated."""
    yield from subject.noted("broken-layer")


@rule(
    "decompression-bomb",
    ERROR,
    "a layer unpacks to absurdly much; it was not read on",
    "https://cwe.mitre.org/data/definitions/409.html",
)
def decompression_bomb(subject: Subject, _target: Host) -> Iterator[str]:
    """By bytes or by entries."""
    yield from subject.noted("decompression-bomb")


@rule(
    "config-size",
    ERROR,
    "podman, skopeo and most registries refuse configs over 4 MiB",
    "https://github.com/containers/image/blob/main/internal/iolimits/iolimits.go",
)
def config_size(subject: Subject, _target: Host) -> Iterator[str]:
    """Usually labels that hold what belongs into a file."""
    if subject.image.config_bytes > _MAX_CONFIG_BYTES:
        yield f"{subject.image.config_bytes:,} bytes"


@rule(
    "history-mismatch",
    WARNING,
    "the config's history does not account for every layer, which some tools rely on",
    "https://github.com/bazel-contrib/rules_oci/issues/645",
)
def history_mismatch(subject: Subject, _target: Host) -> Iterator[str]:
    """Missing, or of another count."""
    history = subject.image.config.get("history")
    steps = history if isinstance(history, list) else []
    n_steps = sum(1 for it in steps if isinstance(it, dict) and not it.get("empty_layer"))
    if n_steps != len(subject.image.layers):
        yield f"{n_steps} steps for {len(subject.image.layers)} layers"


@rule(
    "hidden-bytes",
    WARNING,
    "upper layers delete or replace what lower ones hold: it is shipped and counted for nothing",
    f"{IMAGE_SPEC}/layer.md#whiteouts",
)
def hidden_bytes(subject: Subject, _target: Host) -> Iterator[str]:
    """From 32 MiB on."""
    hidden = subject.scanned.rootfs.hidden_bytes
    if hidden >= _HIDDEN_BYTES:
        yield f"{hidden:,} bytes"


@rule(
    "missing-parent-directory",
    LAMBDA_ERROR,
    "Lambda refuses a layer with a file before its folder (MissingParentDirectory)",
    "https://github.com/aspect-build/rules_aws/issues/103",
)
def missing_parent_directory(subject: Subject, _target: Host) -> Iterator[str]:
    """Docker makes the folder; a folder's entry after its files is too late."""
    yield from subject.noted("missing-parent-directory")


def _is_foreign(media_type: str) -> bool:
    return any(word in media_type for word in _FOREIGN)
