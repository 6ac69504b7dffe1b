"""Pictures to features: a pretrained network reads the new pictures of a catalogue."""

from visrec.cli.signals import listen

if __name__ == "__main__":
    listen()  # before the other imports, which take seconds

    from visrec.cli.launch import launch
    from visrec.pipelines.extract_features import ExtractJob, check, main

    launch(main, ExtractJob, check=check)
