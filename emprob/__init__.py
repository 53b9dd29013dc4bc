"""EM and MAP for NumPyro programs with latent variables, beside full Bayesian inference."""

from emprob.accelerate import Anderson, Annealed, Damped, HandOver, QuasiNewton, Squarem
from emprob.auto import Auto
from emprob.bayes import Bayes, nuts
from emprob.bind import bind
from emprob.check import Diagnosis, check
from emprob.compare import Comparison, compare
from emprob.em import EM
from emprob.errors import (
    CheckpointError,
    ConvergenceWarning,
    DataError,
    DegeneracyWarning,
    FitError,
    IdentifiabilityWarning,
    ModelError,
    PrecisionWarning,
)
from emprob.estep.conjugate import Conjugate
from emprob.estep.enumerate import Enumerate
from emprob.estep.fixed_key import FixedKey
from emprob.estep.gaussian import Gaussian
from emprob.estep.grid import Grid
from emprob.estep.laplace import Laplace
from emprob.estep.montecarlo import MonteCarlo
from emprob.estep.particle import Particle
from emprob.estep.saem import SAEM
from emprob.estep.variational import Variational
from emprob.fit import fit, steps
from emprob.forecast import Forecast, forecast
from emprob.importance import ImportanceReport, importance
from emprob.labels import align_labels
from emprob.map import MAP
from emprob.model import LatentModel
from emprob.mstep.closed_form import ClosedForm
from emprob.mstep.gradient import Gradient
from emprob.mstep.newton import Newton
from emprob.particle.guided import Guided
from emprob.particle.proposal import Bootstrap
from emprob.plot import (
    plot_forecast,
    plot_forest,
    plot_marginals,
    plot_starts,
    plot_states,
    plot_trace,
)
from emprob.result import Fit, load
from emprob.simulation.importance import Importance
from emprob.simulation.nuts import NUTS
from emprob.simulation.particle_gibbs import ParticleGibbs
from emprob.types import Info, Posterior, State, Status

__version__ = "0.1.0"

__all__ = [
    "ParticleGibbs",
    "NUTS",
    "Importance",
    "Bootstrap",
    "Guided",
    "Variational",
    "SAEM",
    "Particle",
    "MonteCarlo",
    "FixedKey",
    "EM",
    "MAP",
    "Anderson",
    "Annealed",
    "Auto",
    "Bayes",
    "CheckpointError",
    "ClosedForm",
    "Comparison",
    "ConvergenceWarning",
    "Damped",
    "DataError",
    "DegeneracyWarning",
    "Diagnosis",
    "Conjugate",
    "Enumerate",
    "Gaussian",
    "Grid",
    "Laplace",
    "Fit",
    "FitError",
    "Forecast",
    "Gradient",
    "HandOver",
    "IdentifiabilityWarning",
    "ImportanceReport",
    "Info",
    "LatentModel",
    "ModelError",
    "Newton",
    "Posterior",
    "PrecisionWarning",
    "QuasiNewton",
    "Squarem",
    "State",
    "Status",
    "align_labels",
    "bind",
    "check",
    "compare",
    "fit",
    "forecast",
    "importance",
    "load",
    "nuts",
    "plot_forecast",
    "plot_forest",
    "plot_marginals",
    "plot_starts",
    "plot_states",
    "plot_trace",
    "steps",
]
