"""A GPU for machines without one. Its tensors are CPU tensors in a wrapper that does what CUDA's do
when they meet a tensor on the CPU: they refuse. So what is on the wrong device is found here;
speed, memory, autocast, compilers and nccl are not."""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
# CUDA takes the CPU's tensors in these: copies, and indices
MIXED = {aten.copy_.default, aten._to_copy.default, aten.index.Tensor, aten.index_put.default,
         aten.index_put_.default, aten._index_put_impl_.default}


class GPUTensor(torch.Tensor):
    @staticmethod
    def __new__(cls, inner):
        # to autograd it is on a device that needs no driver
        self = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device="lazy:0")
        self.inner = inner.detach()
        return self

    device = property(lambda self: torch.device("cuda:0"))
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
    return device is not None and torch.device(device).type in ("cuda", "lazy")


def compute(op, args, kwargs):
    """Unwrap, compute on the CPU, wrap."""
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    there = any(isinstance(t, GPUTensor) for t in tensors)
    here = any(not isinstance(t, GPUTensor) and t.dim() for t in tensors)
    if there and (here and op not in MIXED or op is aten.index.Tensor
                  and not isinstance(args[0], GPUTensor)):
        raise RuntimeError(f"{op}: tensors on cuda:0 and on cpu")
    if op is aten._fused_sdp_choice.default:
        return 0                                      # attention by its formula
    target, name = there, op._schema.name.split("::")[1]
    if kwargs.get("device") is not None:
        target, kwargs = is_gpu(kwargs["device"]), dict(kwargs, device=torch.device("cpu"))
    unwrapped = tree_map(lambda t: t.inner if isinstance(t, GPUTensor) else t, (args, kwargs))
    with _disable_current_modes():
        out = op(*unwrapped[0], **unwrapped[1])
    if name.endswith("_") and isinstance(args[0], torch.Tensor):
        return args[0]                                # in place
    if op is aten._local_scalar_dense.default or not target:
        return out
    return tree_map(lambda t: GPUTensor(t) if isinstance(t, torch.Tensor) else t, out)


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        return compute(op, args, kwargs or {})


@contextmanager
def pretend_gpu():
    """Within it --device=cuda:0 works, in fp32 and without the compiler."""
    real = dict(tensor=torch.tensor, rand=torch.rand, Generator=torch.Generator)

    def tensor(data, *, device=None, **more):
        made = real["tensor"](data, **more)
        return made.to("cuda:0") if is_gpu(device) else made

    def rand(*size, device=None, generator=None, **more):
        ours = isinstance(generator, GPUGenerator)
        if generator is not None and ours != is_gpu(device):
            raise RuntimeError(f"the generator is not on {device}")
        made = real["rand"](*size, generator=generator.inner if ours else generator, **more)
        return made.to("cuda:0") if is_gpu(device) else made

    class Generator(real["Generator"]):
        def __new__(cls, device="cpu"):
            return GPUGenerator() if is_gpu(device) else real["Generator"](device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "set_device", lambda device: None)
        patch.setattr(torch.cuda, "max_memory_allocated", lambda device: 10**9)
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)   # asked by AdamW
        patch.setattr(torch, "tensor", tensor)
        patch.setattr(torch, "rand", rand)
        patch.setattr(torch, "Generator", Generator)
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            with Mode():
                yield
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)
