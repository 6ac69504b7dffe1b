"""The demo's data: paints the sample gallery into the workspace."""

from visrec.cli.signals import listen

if __name__ == "__main__":
    listen()  # before the other imports, which take seconds

    from visrec.cli.launch import launch
    from visrec.pipelines.make_gallery import GalleryJob, main

    launch(main, GalleryJob, needs_ray=False)
