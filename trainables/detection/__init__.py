"""Detectors whose backbone has the bits of a policy that was searched on a classification set.

annotations    images with labelled boxes; voc, coco: from their files
batches        batches of them, augmented
detectors      SSD300 and Faster R-CNN, and what a classifier's policy means in them
costs          of the whole detector, and of its backbone as the paper counts it
voc_ap, coco_ap  what detections are worth
evaluation     a detector's detections, over all workers
finetune_detector, survey_detector  the whole of it
"""
