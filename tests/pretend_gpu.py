"""A GPU for machines without one. Its tensors are CPU tensors in a wrapper that does what CUDA's do
when they meet a tensor on the CPU: they refuse. So what is on the wrong device is found here;
speed, memory, autocast, compilers and nccl are not. Apple's, "mps", also refuses what it lacks:
float64, complex numbers, and operations that PyTorch's own list does not have for it."""

import re
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
import torchgen
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
# CUDA takes the CPU's tensors in these: copies, and indices
MIXED = {aten.copy_.default, aten._to_copy.default, aten.index.Tensor, aten.index_put.default,
         aten.index_put_.default, aten._index_put_impl_.default}


class GPUTensor(torch.Tensor):
    place = "cuda:0"

    @staticmethod
    def __new__(cls, inner):
        # to autograd it is on a device that needs no driver
        self = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device="lazy:0")
        self.inner = inner.detach()
        return self

    device = property(lambda self: torch.device(GPUTensor.place))
    __torch_dispatch__ = classmethod(lambda cls, op, types, args=(), kwargs=None:
                                     compute(op, args, kwargs or {}))

    def __reduce_ex__(self, protocol):                # a file has no devices
        return self.inner.__reduce_ex__(protocol)

    def tolist(self):
        return self.inner.tolist()

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def numpy(self):
        raise TypeError("can't convert a tensor on cuda to numpy")

    def __getitem__(self, index):
        return super().__getitem__(as_tensors(index))

    def __setitem__(self, index, value):
        super().__setitem__(as_tensors(index), value)


class GPUGenerator:
    def __init__(self):
        self.inner = torch.Generator()

    def manual_seed(self, seed):
        self.inner.manual_seed(seed)
        return self


def as_tensors(index):
    """Lists of indices would become tensors without our hearing of it."""
    if isinstance(index, tuple):
        return tuple(map(as_tensors, index))
    return torch.tensor(list(index)) if isinstance(index, (list, range)) else index


def is_gpu(device):
    return device is not None and torch.device(device).type in ("cuda", "mps", "lazy")


@cache
def ops_of_mps():
    """The operations that have a kernel of Apple's, or are made of others."""
    file = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    entries = {}                                      # {name: (keys of its kernels, [delegate])}
    for entry in re.split(r"^- func: ", file.read_text("utf-8"), flags=re.M)[1:]:
        entries[re.match(r"[\w.]+", entry)[0]] = (
            re.findall(r"^    (\w[\w, ]*): ", entry, re.M),
            *re.findall(r"^  structured_delegate: (\S+)", entry, re.M))

    def there(keys, delegate=""):
        return there(*entries[delegate]) if delegate else not keys or bool(re.search(
            "MPS|Composite", " ".join(keys)))

    return {name for name, entry in entries.items() if there(*entry)}


def lacks(op, tensors):
    """What of an operation Apple's GPU does not have, or ""."""
    name, overload = op._schema.name.removeprefix("aten::"), op._schema.overload_name
    if f"{name}.{overload}".rstrip(".") not in ops_of_mps():
        return "this operation"
    return ", ".join({str(t.dtype) for t in tensors if t.dtype == torch.float64 or t.is_complex()})


def compute(op, args, kwargs):
    """Unwrap, compute on the CPU, wrap."""
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    there = any(isinstance(t, GPUTensor) for t in tensors)
    here = any(not isinstance(t, GPUTensor) and t.dim() for t in tensors)
    if there and (here and op not in MIXED or op is aten.index.Tensor
                  and not isinstance(args[0], GPUTensor)):
        raise RuntimeError(f"{op}: tensors on {GPUTensor.place} and on cpu")
    if op is aten._fused_sdp_choice.default:
        return 0                                      # attention by its formula
    target, name = there, op._schema.name.split("::")[1]
    if kwargs.get("device") is not None:
        target, kwargs = is_gpu(kwargs["device"]), dict(kwargs, device=torch.device("cpu"))
    unwrapped = tree_map(lambda t: t.inner if isinstance(t, GPUTensor) else t, (args, kwargs))
    with _disable_current_modes():
        out = op(*unwrapped[0], **unwrapped[1])
    made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
    if target and GPUTensor.place == "mps" and (lack := lacks(op, made)):
        raise TypeError(f"{op}: mps does not have {lack}")
    if name.endswith("_") and isinstance(args[0], torch.Tensor):
        return args[0]                                # in place
    if op is aten._local_scalar_dense.default or not target:
        return out
    return tree_map(lambda t: GPUTensor(t) if isinstance(t, torch.Tensor) else t, out)


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        return compute(op, args, kwargs or {})


@contextmanager
def pretend_gpu(place="cuda:0"):
    """Within it --device=cuda:0 works, or mps, in fp32 and without the compiler."""
    real = dict(tensor=torch.tensor, rand=torch.rand, Generator=torch.Generator, to=torch.Tensor.to)

    def tensor(data, *, device=None, **more):
        made = real["tensor"](data, **more)
        return made.to(place) if is_gpu(device) else made

    def rand(*size, device=None, generator=None, **more):
        ours = isinstance(generator, GPUGenerator)
        if generator is not None and ours != is_gpu(device):
            raise RuntimeError(f"the generator is not on {device}")
        made = real["rand"](*size, generator=generator.inner if ours else generator, **more)
        return made.to(place) if is_gpu(device) else made

    def to(self, *args, **more):                      # it looks for a driver of Apple's
        return real["to"](self, *("lazy:0" if isinstance(arg, (str, torch.device))
                                  and is_gpu(arg) else arg for arg in args), **more)

    class Generator(real["Generator"]):
        def __new__(cls, device="cpu"):
            return GPUGenerator() if is_gpu(device) else real["Generator"](device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPUTensor, "place", place)
        patch.setattr(torch.cuda, "is_available", lambda: place != "mps")
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "set_device", lambda device: None)
        patch.setattr(torch.cuda, "max_memory_allocated", lambda device: 10**9)
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)   # asked by AdamW
        patch.setattr(torch.Tensor, "to", to)
        patch.setattr(torch, "tensor", tensor)
        patch.setattr(torch, "rand", rand)
        patch.setattr(torch, "Generator", Generator)
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            with Mode():
                yield
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)
