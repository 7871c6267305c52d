"""The tables of a scenario that say where a federation finds its machines."""

from __future__ import annotations

from pydantic import Field, field_validator

from fedleak.scenario.ranges import FilePath
from fedleak.scenario.section import Section


class SuperLink(Section):
    """A Flower SuperLink that already runs; engine 'deployment' submits the run to it."""

    address: str = Field(default="127.0.0.1:8000", pattern=r"^[^/\s]+:\d+$", description="host:port, without https://")
    root_certificates: FilePath | None = Field(
        default=None, description="PEM file of the authority that signed the SuperLink's certificate"
    )
    insecure: bool = Field(default=False, description="plain HTTP; for tests on one machine only")


class ClientResources(Section):
    """What one client takes up on Ray, as Flower and Ray name it: so many run at a time as fit."""

    num_cpus: float = Field(default=1.0, ge=1e-4, description="cores of one client; with 0.5, two share a core")
    num_gpus: float = Field(default=0.0, ge=0, description="GPUs of one client; with 0.25, four share a GPU; above 1, whole ones")

    @field_validator("num_gpus")
    @classmethod
    def _whole_above_one(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(f"expected a part of one GPU or whole GPUs, got {gpus:g}")
        return gpus
