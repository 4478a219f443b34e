"""Trainers that save the code of this package's models next to the weights."""

from ..models.hub import hub_code


_MODELS = f"{__package__.split('.')[0]}.models."


class HubCodeMixin:
    """Put before a trainer's class whose arguments have `save_hub_code`."""

    def _save(self, output_dir=None, state_dict=None):
        """Differs from the parent in the code of a whole model of this package."""
        model = self.accelerator.unwrap_model(self.model)
        if self.args.save_hub_code and type(model).__module__.startswith(_MODELS):
            with hub_code(model):
                super()._save(output_dir, state_dict)
        else:
            super()._save(output_dir, state_dict)
