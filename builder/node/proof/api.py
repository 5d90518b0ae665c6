"""The messages of the container runtime interface that a proof exchanges, made from a table.

kubelet speaks to containerd by this interface, version v1, which containerd serves from 1.6 on. Only the fields that are
used are listed; protobuf keeps and skips the others. A field is `name:number`, a string unless a type follows; `[]` is
repeated, `map` is strings by strings. Enumerations travel as integers, so they are declared as such.
Source: github.com/kubernetes/cri-api, pkg/apis/runtime/v1/api.proto (field numbers, services).
"""

from __future__ import annotations

from functools import cache
from typing import Any

PACKAGE = "runtime.v1"
RUNTIME, IMAGES = f"{PACKAGE}.RuntimeService", f"{PACKAGE}.ImageService"
NODE, OWN = 2, 1  # NamespaceMode: the node's namespace, the container's own
EXITED = 2  # ContainerState

MESSAGES = {
    "VersionRequest": "version:1",
    "VersionResponse": "version:1 runtime_name:2 runtime_version:3 runtime_api_version:4",
    "Int64Value": "value:1:int64",
    "ImageSpec": "image:1",
    "Image": "id:1 repo_tags:2:[] repo_digests:3:[] size:4:uint64 uid:5:Int64Value username:6 spec:7:ImageSpec pinned:8:bool",
    "ImageStatusRequest": "image:1:ImageSpec",
    "ImageStatusResponse": "image:1:Image",
    "ListImagesRequest": "",
    "ListImagesResponse": "images:1:[]Image",
    "PullImageRequest": "image:1:ImageSpec",
    "PullImageResponse": "image_ref:1",
    "NamespaceOption": "network:1:int32 pid:2:int32 ipc:3:int32",
    "LinuxSandboxSecurityContext": "namespace_options:1:NamespaceOption",
    "LinuxPodSandboxConfig": "cgroup_parent:1 security_context:2:LinuxSandboxSecurityContext",
    "PodSandboxMetadata": "name:1 uid:2 namespace:3 attempt:4:uint32",
    "PodSandboxConfig": "metadata:1:PodSandboxMetadata hostname:2 log_directory:3 linux:8:LinuxPodSandboxConfig",
    "RunPodSandboxRequest": "config:1:PodSandboxConfig",
    "RunPodSandboxResponse": "pod_sandbox_id:1",
    "StopPodSandboxRequest": "pod_sandbox_id:1",
    "StopPodSandboxResponse": "",
    "RemovePodSandboxRequest": "pod_sandbox_id:1",
    "RemovePodSandboxResponse": "",
    "ContainerMetadata": "name:1 attempt:2:uint32",
    "Mount": "container_path:1 host_path:2 readonly:3:bool",
    "LinuxContainerSecurityContext": "namespace_options:3:NamespaceOption",
    "LinuxContainerConfig": "security_context:2:LinuxContainerSecurityContext",
    "ContainerConfig": "metadata:1:ContainerMetadata image:2:ImageSpec command:3:[] args:4:[] mounts:7:[]Mount log_path:11 "
    "linux:15:LinuxContainerConfig",
    "CreateContainerRequest": "pod_sandbox_id:1 config:2:ContainerConfig sandbox_config:3:PodSandboxConfig",
    "CreateContainerResponse": "container_id:1",
    "StartContainerRequest": "container_id:1",
    "StartContainerResponse": "",
    "StopContainerRequest": "container_id:1 timeout:2:int64",
    "StopContainerResponse": "",
    "RemoveContainerRequest": "container_id:1",
    "RemoveContainerResponse": "",
    "ContainerStatusRequest": "container_id:1 verbose:2:bool",
    "ContainerStatus": "id:1 state:3:int32 created_at:4:int64 started_at:5:int64 finished_at:6:int64 exit_code:7:int32 "
    "image:8:ImageSpec image_ref:9 reason:10 message:11 log_path:15",
    "ContainerStatusResponse": "status:1:ContainerStatus info:2:map",
}
METHODS = {
    **dict.fromkeys(("Version", "RunPodSandbox", "StopPodSandbox", "RemovePodSandbox", "CreateContainer", "StartContainer",
                     "StopContainer", "RemoveContainer", "ContainerStatus"), RUNTIME),
    **dict.fromkeys(("ImageStatus", "ListImages", "PullImage"), IMAGES),
}  # fmt: skip


@cache
def classes() -> dict[str, Any]:
    """Message name to its protobuf class. Needs the protobuf library."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="builder/cri.proto", package=PACKAGE, syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for text in fields.split():
            _add(message, text)
    pool = descriptor_pool.DescriptorPool()  # an own one: another library may hold the whole of runtime.v1
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in MESSAGES}


def _add(message: Any, text: str) -> None:
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field

    name, number, kind = (*text.split(":"), "")[:3]
    field = message.field.add(name=name, number=int(number), label=Field.LABEL_OPTIONAL)
    if kind.startswith("[]") or kind == "map":
        field.label = Field.LABEL_REPEATED
        kind = kind.removeprefix("[]")
    if kind == "map":  # on the wire a map is repeated entries of key and value
        entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        for part in ("key:1", "value:2"):
            _add(entry, part)
        field.type, field.type_name = Field.TYPE_MESSAGE, f".{PACKAGE}.{message.name}.{entry.name}"
    elif kind in MESSAGES:
        field.type, field.type_name = Field.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    else:
        field.type = getattr(Field, f"TYPE_{(kind or 'string').upper()}")
