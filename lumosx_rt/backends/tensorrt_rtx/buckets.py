"""Several plans of one engine, each for scenes of up to so many references."""

from collections.abc import Callable, Mapping

from lumosx_rt.reference.errors import Unsupported
from lumosx_rt.reference.sampling.inputs import Backend, Denoiser, Inputs


class BucketedBackend:
    """A call goes to the first plan that its references fit in, loaded when it is first needed;
    that of the fewest at once, so that what cannot be loaded shows early."""

    def __init__(self, plans: Mapping[int, Callable[[], Backend]]) -> None:
        self._plans = dict(sorted(plans.items()))
        self._loaded: dict[int, Backend] = {}
        self._backend(next(iter(self._plans)))

    def bind(self, inputs: Inputs) -> Denoiser:
        references = inputs.tensors["references"].shape[1]
        for most in self._plans:
            if references <= most:
                return self._backend(most).bind(inputs)
        raise Unsupported(
            f"references: got {references}, this engine's plans serve up to {max(self._plans)}; "
            f"build it with --buckets {','.join(map(str, self._plans))},{references}"
        )

    def describe(self) -> dict[str, str]:
        facts = next(iter(self._loaded.values())).describe()
        return facts | {"buckets": ", ".join(map(str, self._plans))}

    def _backend(self, most: int) -> Backend:
        if most not in self._loaded:
            self._loaded[most] = self._plans[most]()
        return self._loaded[most]
