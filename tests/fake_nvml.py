# ruff: noqa: N802, N815  (NVML has its own names)
"""An NVML module for tests: GPUs, MIG slices, and every way in which a query fails."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace as Bag
from typing import Any


class NVMLError(Exception):
    pass


class NotSupported(NVMLError):
    pass


class NoPermission(NVMLError):
    pass


class FunctionNotFound(NVMLError):
    pass


class GpuIsLost(NVMLError):
    pass


class FakeNvml:
    """``gpus``: name, uuid and, where cut, slices (uuids). ``answers``: query name -> value.

    A value may be an exception class, which is raised, or a function without arguments.
    """

    NVMLError = NVMLError
    NVMLError_NotSupported = NotSupported
    NVMLError_NoPermission = NoPermission
    NVMLError_FunctionNotFound = FunctionNotFound
    NVMLError_GpuIsLost = GpuIsLost
    NVML_DEVICE_MIG_ENABLE = 1
    NVML_NVLINK_MAX_LINKS = 18
    NVML_PCIE_UTIL_TX_BYTES, NVML_PCIE_UTIL_RX_BYTES = 0, 1
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    nvmlClocksEventReasonGpuIdle = 0x1
    nvmlClocksEventReasonApplicationsClocksSetting = 0x2
    nvmlClocksEventReasonSwPowerCap = 0x4
    nvmlClocksEventReasonHwSlowdown = 0x8
    nvmlClocksEventReasonSyncBoost = 0x10
    nvmlClocksEventReasonSwThermalSlowdown = 0x20
    nvmlClocksEventReasonHwThermalSlowdown = 0x40
    nvmlClocksEventReasonHwPowerBrakeSlowdown = 0x80

    def __init__(self, *gpus: tuple[str, str] | tuple[str, str, list[str]], **answers: Any) -> None:
        self.whole = []
        for index, (name, uuid, *cut) in enumerate(gpus):
            gpu = Bag(name=name, uuid=uuid, index=index, parent=None, slices=[])
            gpu.slices = [
                Bag(name=f"{name} MIG", uuid=u, index=index, parent=gpu, slices=[])
                for u in (cut[0] if cut else [])
            ]
            self.whole.append(gpu)
        self.answers = {
            "nvmlDeviceGetClockInfo": 1410,
            "nvmlDeviceGetCurrentClocksEventReasons": 0,
            "nvmlDeviceGetTemperature": 60,
            "nvmlDeviceGetPowerUsage": 250_000,
            "nvmlDeviceGetMemoryInfo": Bag(total=80 << 30, used=2 << 30),
            "nvmlDeviceGetTotalEnergyConsumption": 1_000_000,
            "nvmlDeviceGetComputeRunningProcesses_v3": [],
            "nvmlDeviceGetMPSComputeRunningProcesses_v3": [],
            "nvmlDeviceGetMaxClockInfo": 1980,
            "nvmlDeviceGetUtilizationRates": Bag(gpu=75, memory=30),
            "nvmlDeviceGetPcieThroughput": 2_000_000,
            "nvmlDeviceGetGraphicsRunningProcesses_v3": [],
            "nvmlDeviceGetCudaComputeCapability": (9, 0),
            "nvmlDeviceGetPciInfo": Bag(busId="00000000:65:00.0"),
            "nvmlDeviceGetMaxPcieLinkGeneration": 5,
            "nvmlDeviceGetMaxPcieLinkWidth": 16,
            "nvmlDeviceGetCurrPcieLinkGeneration": 1,
            "nvmlDeviceGetCurrPcieLinkWidth": 8,
            "nvmlInit": None,
        } | answers
        self.nvlinks: dict[str, list[str]] = {}
        """UUID -> address of what each link leads to; '' where it is down."""
        self.calls: list[str] = []
        self.sessions = 0

    def __getattr__(self, query: str) -> Callable[..., Any]:
        if query not in self.__dict__["answers"]:
            raise AttributeError(query)

        def ask(*given: Any) -> Any:
            self.calls.append(query)
            answer = self.answers[query]
            if isinstance(answer, type) and issubclass(answer, Exception):
                raise answer(query)
            if query == "nvmlInit":
                self.sessions += 1
            if isinstance(answer, dict):  # by UUID
                return answer[next(d.uuid for d in given if hasattr(d, "uuid"))]
            return answer() if callable(answer) else answer

        return ask

    def nvmlShutdown(self) -> None:
        self.sessions -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.whole)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        return self.whole[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any:
        return next(d for g in self.whole for d in (g, *g.slices) if d.uuid == uuid)

    def nvmlDeviceGetUUID(self, device: Any) -> str:
        return str(device.uuid)

    def nvmlDeviceGetName(self, device: Any) -> str:
        return str(device.name)

    def nvmlDeviceIsMigDeviceHandle(self, device: Any) -> bool:
        return device.parent is not None

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, device: Any) -> Any:
        if device.parent is None:
            raise NotSupported("not a slice")
        return device.parent

    def nvmlDeviceGetMigMode(self, device: Any) -> list[int]:
        if not device.slices:
            raise NotSupported("no MIG here")
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, device: Any) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: Any, index: int) -> Any:
        if index >= len(device.slices):
            raise NVMLError("not found")
        return device.slices[index]

    def nvmlDeviceGetNvLinkState(self, device: Any, link: int) -> int:
        if link >= len(self.nvlinks.get(device.uuid, [])):
            raise NVMLError("no such link")
        return int(bool(self.nvlinks[device.uuid][link]))

    def nvmlDeviceGetNvLinkRemotePciInfo(self, device: Any, link: int) -> Any:
        return Bag(busId=self.nvlinks[device.uuid][link].encode())

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.65"

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return 13000
