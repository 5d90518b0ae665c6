# An image for GKE's secondary boot disks, for projects that may not import archives from a bucket.
#
#   builder bake disk data.img --target gke-secondary --oci REPOSITORY:TAG=layout/ --size 50GiB
#   packer init packer/gcp/secondary-disk.pkr.hcl
#   packer build -var-file data.img.auto.pkrvars.json -var project=PROJECT packer/gcp/secondary-disk.pkr.hcl
#
# An ordinary instance gets an empty disk, writes the baked one onto it, and is thrown away; the disk becomes the image. Where a
# bucket is allowed, DISK.gke.sh does the same without an instance.
# Lines between "packer >= 1.8" and "end" use arguments that Packer 1.6 lacks.

# packer >= 1.8
packer {
  required_version = ">= 1.8.0"
  required_plugins {
    googlecompute = {
      source  = "github.com/hashicorp/googlecompute"
      version = ">= 1.1.0"
    }
  }
}
# end

variable "project" {
  type = string
}

variable "zone" {
  type    = string
  default = "us-central1-a"
}

variable "name" {
  type = string
}

variable "image_name" {
  type        = string
  description = "Lower case, digits and hyphens; holds the content hash, so nothing is overwritten."
}

variable "disk_file" {
  type        = string
  description = "The raw disk that builder bake made."
}

variable "volume_size" {
  type        = number
  description = "GiB; the size of the disk."
}

variable "builder_size" {
  type        = number
  default     = 64
  description = "GiB of the instance's own disk; holds the archive and the sparse disk."
}

variable "content_sha256" {
  type = string
}

variable "machine_type" {
  type    = string
  default = "n2-standard-4"
}

variable "source_image_family" {
  type    = string
  default = "debian-12"
}

source "googlecompute" "disk" {
  project_id          = var.project
  zone                = var.zone
  machine_type        = var.machine_type
  source_image_family = var.source_image_family
  ssh_username        = "packer"
  disk_size           = var.builder_size
  disk_type           = "pd-ssd"
  image_name          = var.image_name
  image_description   = "builder: ${var.name}"
  image_labels = {
    builder-content-sha256 = substr(var.content_sha256, 0, 63) # a label holds at most 63 characters
  }
  # packer >= 1.8
  disk_attachment {
    volume_type  = "pd-ssd"
    volume_size  = var.volume_size
    device_name  = "baked"
    create_image = true
  }
  # end
}

build {
  sources = ["source.googlecompute.disk"]

  provisioner "shell-local" {
    inline = ["tar --create --sparse --zstd --file '${var.disk_file}.tar.zst' --directory \"$(dirname '${var.disk_file}')\" \"$(basename '${var.disk_file}')\""]
  }

  provisioner "file" {
    source      = "${var.disk_file}.tar.zst"
    destination = "/var/tmp/disk.tar.zst"
    generated   = true # made by the step before, so not there when the template is validated
  }

  provisioner "shell" {
    script           = "${path.root}/../write-disk.sh"
    environment_vars = ["DEVICE=/dev/disk/by-id/google-baked"]
    execute_command  = "sudo env {{ .Vars }} sh '{{ .Path }}'"
  }
}
