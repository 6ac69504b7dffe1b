"""Paints the demo's sample gallery into the workspace."""

from visrec.cli.signals import exit_on_signals

if __name__ == "__main__":
    exit_on_signals()  # before the other imports, which take seconds

    from visrec.cli.launch import launch
    from visrec.pipelines.make_gallery import GalleryJob, main

    launch(main, GalleryJob, needs_ray=False)
