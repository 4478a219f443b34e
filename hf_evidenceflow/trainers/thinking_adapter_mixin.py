"""Trainers that save the thinking config next to an adapter."""

from accelerate.utils import is_peft_model


class ThinkingAdapterMixin:
    """Put before a trainer's class whose model thinks."""

    def _save(self, output_dir=None, state_dict=None):
        """Differs from the parent in the config next to an adapter, without which its thinking mode would be lost."""
        super()._save(output_dir, state_dict)
        base = self.accelerator.unwrap_model(self.model)
        if is_peft_model(base) and self.args.should_save:
            base.get_base_model().config.save_pretrained(output_dir or self.args.output_dir)
