"""The eager forms that the module is compared with; the package's own check uses the same ones."""

from cbam_triton.forms import JongchanCBAM, TimmCBAM, jongchan_like, timm_like

__all__ = ["JongchanCBAM", "TimmCBAM", "jongchan_like", "timm_like"]
