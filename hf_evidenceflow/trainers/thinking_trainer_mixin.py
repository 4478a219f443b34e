"""What trainers of thinking models share: the rates of the thinking modules, the config next to an adapter."""

from accelerate.utils import is_peft_model

from .parameter_groups import apply_parameter_groups


class ThinkingTrainerMixin:
    """Put before a trainer's class whose model thinks, and which has `parameter_specs`."""

    def create_optimizer(self, model=None):
        """Differs from the parent in the learning rates of the thinking modules."""
        new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if new and self.parameter_specs:
            apply_parameter_groups(
                optimizer, (self.model if model is None else model).named_parameters(), self.parameter_specs
            )
        return optimizer

    def _save(self, output_dir=None, state_dict=None):
        """Differs from the parent in the config next to an adapter, without which its thinking mode would be lost."""
        super()._save(output_dir, state_dict)
        base = self.accelerator.unwrap_model(self.model)
        if is_peft_model(base) and self.args.should_save:
            base.get_base_model().config.save_pretrained(output_dir or self.args.output_dir)
