"""The only module that touches ArviZ, which has one interface for Python 3.11 and another after.

Everything is held as an `xarray.DataTree`. ArviZ 0.23 (the last for Python 3.11) is asked through
its `InferenceData`; ArviZ 1 takes the tree itself. ArviZ is imported when it is first needed.
"""

import importlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy.special import logsumexp

Arrays = Mapping[str, Any]

_SAMPLE = ("chain", "draw")
# A tail is a fifth of the draws, and no shape is fitted to five points.
_FEWEST = 30
_ROUNDING = 1e-8
# The groups whose arrays start with (chain, draw).
_SAMPLED = ("posterior", "log_likelihood", "sample_stats")


class Loo(NamedTuple):
    """Leave-one-out cross-validation by Pareto-smoothed importance sampling.

    Attributes:
        elpd: expected log pointwise predictive density, the sum over the observations.
        se: its standard error.
        p: the effective number of parameters.
        pointwise: the terms of `elpd`, by observation.
        pareto_k: shape of the tail of the importance ratios, by observation.
        good_k: up to this shape the terms can be relied on, min(1 - 1/log10(draws), 0.7).
    """

    elpd: float
    se: float
    p: float
    pointwise: xr.DataArray
    pareto_k: xr.DataArray
    good_k: float


def to_datatree(
    posterior: Arrays,
    *,
    log_likelihood: Arrays | None = None,
    observed_data: Arrays | None = None,
    sample_stats: Arrays | None = None,
    constant_data: Arrays | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> xr.DataTree:
    """Put draws and data in the groups and with the dimensions that ArviZ expects.

    Args:
        posterior: draws by site, (chain, draw, *shape), constrained.
        log_likelihood: pointwise log-likelihood by observed site, (chain, draw, *shape). For
            models with latents: the marginal one.
        observed_data: data by site, (*shape,).
        sample_stats: what the sampler reports, (chain, draw, *shape).
        constant_data: covariates, (*shape,).
        dims: names of the dimensions of a variable after chain and draw; `NAME_dim_0` and so on by
            default.
        coords: labels by dimension; 0, 1, ... by default. Those of other dimensions are left out.
        attrs: written on the root; what a netCDF file cannot hold is turned into JSON.

    Raises:
        ValueError: a variable has fewer or other dimensions than it should, or a dimension does not
            fit its labels.
    """
    groups = {
        "posterior": posterior,
        "log_likelihood": log_likelihood,
        "sample_stats": sample_stats,
        "observed_data": observed_data,
        "constant_data": constant_data,
    }
    tree = xr.DataTree.from_dict(
        {
            f"/{group}": _dataset(arrays, _SAMPLE if group in _SAMPLED else (), dims, coords)
            for group, arrays in groups.items()
            if arrays
        }
    )
    tree.attrs.update({name: _attribute(value) for name, value in (attrs or {}).items()})
    return tree


def to_inference_data(tree: xr.DataTree) -> Any:
    """What the installed ArviZ plots: an `InferenceData` (0.23) or the tree itself (1.x)."""
    az = _arviz()
    return az.InferenceData.from_datatree(tree) if _is_old(az) else tree


def rhat(draws: Any) -> np.ndarray:
    """Rank-normalised split R-hat.

    Args:
        draws: (chain, draw, *shape).

    Returns:
        (*shape,); NaN for a constant, and where there is one chain only.

    Source: Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), Bayesian Analysis 16(2).
    """
    if np.shape(draws)[0] < 2:  # ArviZ answers the same, with a line on stderr
        return np.full(np.shape(draws)[2:], np.nan)
    return _diagnose("rhat", draws, method="rank")


def ess(draws: Any) -> np.ndarray:
    """Bulk effective sample size: (chain, draw, *shape) -> (*shape,). Source: as `rhat`."""
    return _diagnose("ess", draws, method="bulk")


def mcse(draws: Any) -> np.ndarray:
    """Monte Carlo standard error of the mean: (chain, draw, *shape) -> (*shape,)."""
    return _diagnose("mcse", draws, method="mean")


def pareto_khat(log_ratios: Any) -> tuple[np.ndarray, float]:
    """Smooth the largest importance ratios by a generalised Pareto distribution.

    Args:
        log_ratios: (n,), log target minus log proposal at draws of the proposal, up to a constant.

    Returns:
        The smoothed log weights, (n,), which sum to one on the natural scale, and the shape k of
        the tail: below 0.7 the weights can be relied on. It is infinite where fewer than 30 draws
        have weight, too few to tell, and 0 where the weights are equal up to rounding.

    Raises:
        ValueError: the ratios are not one finite row (-inf, a weight of nought, is finite here).

    Source: Vehtari, Simpson, Gelman, Yao and Gabry (2024), JMLR 25(72).
    """
    ratios = np.array(log_ratios, dtype=np.float64)
    if ratios.ndim != 1 or not ratios.size:
        raise ValueError(f"log_ratios: expected shape (n,) with n > 0, got {ratios.shape}")
    bad = np.flatnonzero(np.isnan(ratios) | (ratios == np.inf))
    if bad.size:
        raise ValueError(
            f"log_ratios: expected numbers below infinity, got {bad.size} others, "
            f"first {ratios[bad[0]]} at index {bad[0]}; look at the draw that gave it"
        )
    # Draws of weight nought are not part of the tail, and ArviZ cannot subtract infinities.
    weighty = np.isfinite(ratios)
    weights, shape = np.full_like(ratios, -np.inf), np.inf
    if weighty.any():
        smoothed, shape = _smooth_tail(ratios[weighty] - ratios[weighty].max())
        weights[weighty] = smoothed - logsumexp(smoothed)
    return weights, shape


def loo(tree: xr.DataTree, *, var_name: str | None = None) -> Loo:
    """Leave-one-out cross-validation from the groups `posterior` and `log_likelihood`.

    Args:
        tree: as of `to_datatree`.
        var_name: the observed site, where there are several.

    Raises:
        ValueError: there is no `log_likelihood`, or several sites and none is named.

    Warns:
        UserWarning: by ArviZ, where some `pareto_k` is above `good_k`.

    Source: Vehtari, Gelman and Gabry (2017), Statistics and Computing 27.
    """
    sites = list(tree["log_likelihood"].data_vars) if "log_likelihood" in tree.children else []
    if var_name not in ([None, *sites] if len(sites) == 1 else sites):
        raise ValueError(f"var_name: expected one of the observed sites {sites}, got {var_name!r}")
    az = _arviz()
    result = az.loo(to_inference_data(tree), pointwise=True, var_name=var_name or sites[0])
    old = _is_old(az)
    return Loo(
        elpd=float(result.elpd_loo if old else result.elpd),
        se=float(result.se),
        p=float(result.p_loo if old else result.p),
        pointwise=result.loo_i if old else result.elpd_i,
        pareto_k=result.pareto_k,
        good_k=float(result.good_k),
    )


def write_netcdf(tree: xr.DataTree, path: str | os.PathLike) -> None:
    """Write a tree to a netCDF file, which every version of ArviZ can read."""
    tree.to_netcdf(path, engine="netcdf4")


def read_netcdf(path: str | os.PathLike) -> xr.DataTree:
    """Read a tree from a netCDF file into memory, and close the file."""
    with xr.open_datatree(path, engine="netcdf4") as tree:
        return tree.load()


def _arviz() -> Any:
    with warnings.catch_warnings():
        # ArviZ 0.23 announces its own rewrite, once, when it is imported.
        warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
        return importlib.import_module("arviz")


def _is_old(az: Any) -> bool:
    return int(az.__version__.split(".")[0]) < 1


def _array_stats() -> Any:
    return importlib.import_module("arviz_stats.base").array_stats


def _smooth_tail(ratios: np.ndarray) -> tuple[np.ndarray, float]:
    if ratios.size < _FEWEST:
        return ratios, np.inf
    # A proposal that is exact: ArviZ would fit a tail to rounding errors.
    if np.ptp(ratios) < _ROUNDING:
        return ratios, 0.0
    az = _arviz()
    # ArviZ 1 takes a log-likelihood, which is minus the log ratio of leaving one out.
    weights, shape = az.psislw(ratios) if _is_old(az) else _array_stats().psislw(-ratios)
    return np.asarray(weights, dtype=np.float64), float(shape)


def _diagnose(name: str, draws: Any, **settings: Any) -> np.ndarray:
    values = np.asarray(draws, dtype=np.float64)
    if values.ndim < 2:
        raise ValueError(f"draws: expected shape (chain, draw, ...), got {values.shape}")
    data = _dataset({"x": values}, _SAMPLE, None, None)
    return np.asarray(getattr(_arviz(), name)(data, **settings)["x"].values)


def _dataset(
    arrays: Arrays,
    leading: tuple[str, ...],
    dims: Mapping[str, Sequence[str]] | None,
    coords: Mapping[str, Any] | None,
) -> xr.Dataset:
    variables = {}
    for name, value in arrays.items():
        array = np.asarray(value)
        count = array.ndim - len(leading)
        names = tuple((dims or {}).get(name, (f"{name}_dim_{i}" for i in range(count))))
        if count < 0 or len(names) != count:
            raise ValueError(
                f"{name}: expected dimensions {(*leading, *names)}, got shape {array.shape}"
            )
        variables[name] = ((*leading, *names), array)
    dataset = xr.Dataset(variables)
    labels = {str(dim): np.arange(size) for dim, size in dataset.sizes.items()}
    named = {dim: values for dim, values in (coords or {}).items() if dim in labels}
    return dataset.assign_coords({**labels, **named})


def _attribute(value: Any) -> Any:
    """A value that netCDF can hold: numbers and strings as they are, others as JSON."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str | float) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    return json.dumps(value, default=str)
