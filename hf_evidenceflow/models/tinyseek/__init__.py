"""TinySeek: a looped transformer with multi-head latent attention and many small experts."""
